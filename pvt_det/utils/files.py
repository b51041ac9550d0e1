"""Atomic writes: a reader finds the old file or the new one, never a part."""

from __future__ import annotations

import os
from pathlib import Path

# Unfinished files are named `.NAME.PID.tmp`; whoever owns the folder may delete those that a killed process left.
TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole, and flush it to disk.

    Args:
        path: The file; its folder must exist.
        content: Text is written as UTF-8; characters that UTF-8 lacks (halves of surrogate pairs, from file names that
            are not Unicode) are written as backslash escapes, which mean the same in JSON.

    Raises:
        OSError: The file cannot be written; the old one is untouched.
    """
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
