"""Write files atomically: readers see either the old file or the new one, never a part of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# Unfinished files are named `.NAME.PID.tmp`. Only the writer of NAME may delete those that a killed process left.
TEMPORARY_SUFFIX = ".tmp"
_encode = json.JSONEncoder(ensure_ascii=False).encode


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


def write_json_list(path: Path, items: Iterable[Any], before: str = "", after: str = "") -> None:
    """Write a JSON list atomically, one element per line, without keeping the elements in memory.

    Args:
        path: The file to write or replace. Its folder must exist.
        items: The elements, as JSON values.
        before: Text before the list, such as `{"images": `.
        after: Text after the list, such as `}`.

    Raises:
        OSError: The file cannot be written. The old file is unchanged.
    """
    with open_atomically(path) as file:
        file.write(before.encode("utf-8"))
        _write_list(file, items)
        file.write(after.encode("utf-8"))


def write_json_lists(path: Path, lists: Mapping[str, Iterable[Any]], **values: Any) -> None:
    """Write a JSON object with long lists atomically, without keeping their elements in memory.

    Args:
        path: The file to write or replace. Its folder must exist.
        lists: The elements of each list, as JSON values, by the key of the list.
        values: Further values of the object, by key.

    Raises:
        OSError: The file cannot be written. The old file is unchanged.
    """
    with open_atomically(path) as file:
        file.write(b"{")
        for key, items in lists.items():
            file.write(f"{_encode(key)}: ".encode())
            _write_list(file, items)
            file.write(b",\n")
        # Without its opening brace, the rest of the object.
        file.write(_encode(values)[1:].encode("utf-8"))


def _write_list(file: BinaryIO, items: Iterable[Any]) -> None:
    separator = "["
    for item in items:
        file.write((separator + _encode(item)).encode("utf-8", errors="backslashreplace"))
        separator = ",\n"
    file.write(b"[]" if separator == "[" else b"]")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to disk, so that a rename in it survives a power failure.

    Does nothing on Windows, where folders cannot be opened.

    Args:
        folder: An existing folder.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
