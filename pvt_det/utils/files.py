"""Atomic writes: a reader finds the old file or the new one, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Unfinished files are named `.NAME.PID.tmp`; whoever owns the folder may delete those that a killed process left.
TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` as a whole, flushed to disk, when the block ends without an error.

    Args:
        path: The file; its folder must exist.

    Raises:
        OSError: The file cannot be written; the old one is untouched.
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
    """Replace a file as a whole, and flush it to disk.

    Args:
        path: The file; its folder must exist.
        content: Text is written as UTF-8; characters that UTF-8 lacks (halves of surrogate pairs, from file names that
            are not Unicode) are written as backslash escapes, which mean the same in JSON.

    Raises:
        OSError: The file cannot be written; the old one is untouched.
    """
    with open_atomically(path) as file:
        file.write(content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
