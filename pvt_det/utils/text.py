"""Texts in messages: what one that comes from a file may hold, to be shown as it is; names in a row."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters, line and paragraph separators and changes of the writing direction, which lead terminals and logs
# astray, and halves of surrogate pairs, which no file can be written with.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in a row; of more than `most` the first ones, and how many there are: "a, b, … (7 in all)"."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")
