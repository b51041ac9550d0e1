"""Helpers for user-facing messages: which characters are safe to print, how to join names, spelling, old names."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Sequence

# Control characters, line and paragraph separators and changes of the writing direction, which confuse terminals and
# logs, and halves of surrogate pairs, which cannot be written to a UTF-8 file.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Join names with commas; beyond `most`, show the first ones and the total: "a, b, … (7 in all)"."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def closest(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Return up to `most` of the `known` names that are spelled like `word`, the closest first; case is ignored."""
    by_folded = {name.lower(): name for name in known}
    return [by_folded[name] for name in difflib.get_close_matches(word.lower(), by_folded, n=most)]


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """Suggest the names that a misspelled one may mean.

    Args:
        word: The name that was not found.
        known: All valid names.
        most: The largest number of suggestions.

    Returns:
        A sentence with a space before it, " Did you mean a or b?"; "" where no name is close.
    """
    names = closest(word, known, most)
    return f" Did you mean {' or '.join(names)}?" if names else ""


def warn_deprecated(old: str, new: str) -> None:
    """Warn about an old name.

    The category is `FutureWarning` because Python shows it to users by default, unlike `DeprecationWarning`.

    Args:
        old: What the user wrote, such as "--config".
        new: What to write in its place, such as "--config-file".
    """
    warnings.warn(f"{old} is deprecated and will stop working in the next version. Use {new}.", FutureWarning, 3)
