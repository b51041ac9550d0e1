"""Helpers for user-facing messages: safe characters, counts, lists, spelling suggestions, deprecation warnings."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Sequence

# Control characters, line and paragraph separators and changes of the writing direction, which confuse terminals and
# logs, and unpaired surrogates, which cannot be written to a UTF-8 file.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Access tokens of the Hugging Face Hub, which errors of HTTP libraries may quote.
_TOKEN = re.compile(r"\b(hf_)[A-Za-z0-9]{30,}|\b(Bearer\s+)[^\s'\"]{20,}")


def printable(text: str) -> str:
    r"""Make text from outside, such as file names and error messages, safe for terminals and logs.

    `pvt_det.utils.cli.run_cli`, `pvt_det.utils.logs` and `pvt_det.utils.console` apply it to everything that they
    write, so callers need not.

    Args:
        text: Any text. Line breaks and tabs are kept.

    Returns:
        The text, with all other control characters and changes of the writing direction as escapes such as `\x1b`,
        and without access tokens.
    """
    text = _TOKEN.sub(r"\1\2…", text)
    return UNPRINTABLE.sub(lambda match: match[0] if match[0] in "\n\t" else _escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def listed(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Join names with commas, shortening long lists to the first names: "a, b, … (7 in all)".

    Args:
        names: The names.
        most: Maximum number of names shown.
        separator: What to join the names with, if not with commas.
    """
    return separator.join(names[:most]) + (f"{separator}… ({len(names)} in all)" if len(names) > most else "")


def counted(count: int, singular: str, plural: str = "") -> str:
    """Write a number with its noun: "1 image", "1,200 images".

    Args:
        count: The number.
        singular: The noun for one, such as "image".
        plural: The noun for other numbers; "" appends an "s".
    """
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def closest(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Return the names with the most similar spelling, the closest first. Case is ignored.

    Args:
        word: The name that was not found.
        known: All valid names.
        most: Maximum number of names returned.
    """
    by_folded = {name.lower(): name for name in known}
    return [by_folded[name] for name in difflib.get_close_matches(word.lower(), by_folded, n=most)]


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """Suggest valid names for a misspelled one.

    Args:
        word: The name that was not found.
        known: All valid names.
        most: Maximum number of suggestions.

    Returns:
        A sentence with a leading space, " Did you mean a or b?"; "" if no name is similar.
    """
    names = closest(word, known, most)
    return f" Did you mean {' or '.join(names)}?" if names else ""


def warn_deprecated(old: str, new: str) -> None:
    """Warn about a deprecated name.

    The category is `FutureWarning` because Python shows it to users by default, unlike `DeprecationWarning`.

    Args:
        old: The deprecated name that the user wrote, such as "--config".
        new: The name to use instead, such as "--config-file".
    """
    warnings.warn(f"{old} is deprecated and will stop working in the next version. Use {new}.", FutureWarning, 3)
