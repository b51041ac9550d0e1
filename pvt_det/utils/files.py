"""Write files atomically: readers see either the old file or the new one, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Unfinished files are named `.NAME.PID.tmp`. The owner of a folder may delete those that a killed process left.
TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing that replaces `path` when the block ends without an error.

    The file is flushed to disk before it replaces the old one.

    Args:
        path: The file to replace. Its folder must exist.

    Yields:
        The temporary file, opened in binary mode.

    Raises:
        OSError: The file cannot be written. The old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically and flush it to disk.

    Args:
        path: The file to write or replace. Its folder must exist.
        content: The new content. A string is written as UTF-8. Unpaired surrogates, which come from file names that are
            not Unicode, are written as backslash escapes, which JSON decodes to the same characters.

    Raises:
        OSError: The file cannot be written. The old file is unchanged.
    """
    with open_atomically(path) as file:
        file.write(content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to disk, so that a rename in it survives a power failure.

    Args:
        folder: An existing folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
