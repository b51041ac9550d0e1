"""Paths that a user names: what is wrong with one to read, told without waiting for a pipe; folders to write in."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from pvt_det.errors import ConfigError

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


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder for output where it is absent, with those above it, and try whether files can be made in it.

    Called before work that takes long, it keeps the work from being lost.

    Raises:
        ConfigError: It cannot be made, or nothing can be written in it.
    """
    path = Path(folder)
    fault = "made"
    try:
        path.mkdir(parents=True, exist_ok=True)
        fault = "written in"
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "a file is in its place" if in_the_way else error.strerror
        raise ConfigError(f"folder {path} cannot be {fault}: {reason}. Name another folder for the output.") from error


def make_place(file: str | os.PathLike[str]) -> None:
    """Make the folder of a file for output, as `make_folder` does.

    Raises:
        ConfigError: As of `make_folder`; or a folder is where the file shall be.
    """
    make_folder(Path(file).parent)
    if Path(file).is_dir():
        raise ConfigError(f"{file} is a folder: name a file for the output.")


def _mode(path: str | os.PathLike[str]) -> int | str:
    try:
        return Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as error:  # too long a name, a folder that may not be entered, links in a circle
        return f"cannot be reached ({error.strerror})"
    except ValueError:  # a zero byte, or what is no Unicode
        return "is no possible name of a file"
