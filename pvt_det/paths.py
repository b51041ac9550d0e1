"""What is wrong with a path that a user names, told without an exception and without waiting for a pipe."""

from __future__ import annotations

import os
import stat
from pathlib import Path

ABSENT = "does not exist"


def file_fault(path: str | os.PathLike[str]) -> str:
    """What keeps a path from being read as a file: "does not exist", "is a folder" …; "" where nothing does.

    Pipes and devices count as faults, as they may never end.
    """
    mode = _mode(path)
    if isinstance(mode, str):
        return mode
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is no regular file"


def folder_fault(path: str | os.PathLike[str]) -> str:
    """What keeps a path from being read as a folder; "" where nothing does."""
    mode = _mode(path)
    if isinstance(mode, str):
        return mode
    return "" if stat.S_ISDIR(mode) else "is no folder"


def _mode(path: str | os.PathLike[str]) -> int | str:
    try:
        return Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as error:  # too long a name, a folder that may not be entered, links in a circle
        return f"cannot be reached ({error.strerror})"
    except ValueError:  # a zero byte, or what is no Unicode
        return "is no possible name of a file"
