"""Check input paths without opening them, find or create folders for output, and name paths briefly."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pvt_det.errors import ConfigError
from pvt_det.utils.text import closest, did_you_mean

ABSENT = "does not exist"


def cache_folder() -> Path:
    """Return the folder for downloads and indexes: `$PVT_DET_CACHE`, or `~/.cache/pvt_det`."""
    return Path(os.environ.get("PVT_DET_CACHE") or "~/.cache/pvt_det").expanduser()


def file_fault(path: str | os.PathLike[str]) -> str:
    """Say why a path cannot be read as a file.

    Pipes and devices are refused because reading them may never end.

    Args:
        path: The path to check.

    Returns:
        A phrase that follows the path in a message, such as "does not exist" or "is a folder"; "" if it is a file.
    """
    mode = _mode(path)
    if isinstance(mode, str):
        return mode
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is not a regular file"


def folder_fault(path: str | os.PathLike[str]) -> str:
    """Say why a path cannot be read as a folder.

    Args:
        path: The path to check.

    Returns:
        A phrase that follows the path in a message, such as "does not exist"; "" if it is a folder.
    """
    mode = _mode(path)
    if isinstance(mode, str):
        return mode
    return "" if stat.S_ISDIR(mode) else "is not a folder"


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Create an output folder and its missing parents, and check that files can be written to it.

    Call it before long work, so that the work is not lost because its results cannot be saved.

    Args:
        folder: The folder to create.

    Raises:
        ConfigError: The folder cannot be created or written to.
    """
    path = Path(folder)
    action = "created"
    try:
        path.mkdir(parents=True, exist_ok=True)
        action = "written to"
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "a file is in the way" if in_the_way else error.strerror
        raise ConfigError(f"folder {path} cannot be {action}: {reason}. Choose another output folder.") from error


def make_parent_folder(file: str | os.PathLike[str]) -> None:
    """Create the folder of an output file, as `make_folder` does.

    Args:
        file: The file that will be written.

    Raises:
        ConfigError: The folder cannot be created or written to, or `file` is an existing folder.
    """
    make_folder(Path(file).parent)
    if Path(file).is_dir():
        raise ConfigError(f"{file} is a folder. Choose a file name for the output.")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart: "b" for a/b and a/c, "a/c" for a/c and b/c.

    Args:
        paths: The paths. Equal paths get equal names.
    """
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def _mode(path: str | os.PathLike[str]) -> int | str:
    try:
        return Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    except OSError as error:  # name too long, permission denied, or a loop of links
        return f"cannot be reached ({error.strerror})"
    except ValueError:  # a null byte or invalid Unicode
        return "is not a valid file name"


def similar_path(path: str | os.PathLike[str]) -> str:
    """Suggest the file or folder whose name was probably misspelled.

    Args:
        path: A path that does not exist.

    Returns:
        A sentence with a leading space, such as " Did you mean output/mine?"; "" if nothing in the folder is similar.
    """
    missing = Path(path)
    try:
        if missing.exists():
            return ""
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        return ""
    return did_you_mean(str(missing), [str(missing.with_name(name)) for name in closest(missing.name, names)])
