"""What a text that comes from a file may hold, to be shown as it is."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators and changes of the writing direction, which lead terminals and logs
# astray, and halves of surrogate pairs, which no file can be written with.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
