"""Tells users that something still works under its old name, for one more version."""

from __future__ import annotations

import warnings


def warn_deprecated(old: str, new: str) -> None:
    """Warn about an old name.

    The category is `FutureWarning` because Python shows it to users by default, unlike `DeprecationWarning`.

    Args:
        old: What the user wrote, such as "--config".
        new: What to write in its place, such as "--config-file".
    """
    warnings.warn(f"{old} is deprecated and will stop working in the next version. Use {new}.", FutureWarning, 3)
