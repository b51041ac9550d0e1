"""Checked annotation files, kept in memory during a run and on disk for other processes and later runs.

Reading and checking a file of COCO's size takes half a minute and gigabytes of memory. The first process of a machine
does it, and writes the result to the cache folder. All processes map that file into memory.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from filelock import FileLock

import pvt_det
from pvt_det.data.coco import annotations as checks
from pvt_det.data.coco import packed, packing
from pvt_det.data.coco.annotations import CocoData
from pvt_det.data.coco.findings import Findings
from pvt_det.data.coco.packed import PackedCoco, open_packed, write_packed
from pvt_det.data.coco.packing import read_packed
from pvt_det.data.storage.places import local_file
from pvt_det.structures import rle
from pvt_det.utils import strict_json
from pvt_det.utils.arrays import DamagedFileError
from pvt_det.utils.digest import file_digest, value_digest
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import cache_folder
from pvt_det.utils.strict_json import garbage_kept

logger = logging.getLogger(__name__)

_MAX_FILES = 4
# A smaller annotation file, in bytes, is read in less than a second.
_LARGE = 2**23
# Nobody uses a file on disk again that was not opened for so long.
_UNUSED_SECONDS = 30 * 24 * 3600
# Seconds to wait for another process that reads the same file, which takes less than a minute for COCO.
_PATIENCE = 30 * 60
# A file may be changed again without a new time of modification within this many nanoseconds.
_CLOCK_TICK = 2 * 10**9

_Key = tuple[str, bool, int, int]
_opened: dict[_Key, PackedCoco] = {}
_unpacked: dict[_Key, CocoData] = {}


def open_annotations(json_file: str | Path, *, allow_outside: bool = False) -> PackedCoco:
    """Read and check an annotation file, or open the result of an earlier check of the same content.

    Args:
        json_file: Annotation file in COCO's instances format.
        allow_outside: Whether image file names may be absolute or contain `..`.

    Returns:
        The valid annotations and the problems, which callers must not modify.

    Raises:
        DataError: The file is missing or not in COCO's format.
    """
    path = local_file(json_file)
    key = _key(path, allow_outside)
    if key not in _opened or key[2] < 0:
        while len(_opened) >= _MAX_FILES:
            _forget(next(iter(_opened)))
        _opened[key] = _open(path, allow_outside) if key[2] >= _LARGE else _read(path, allow_outside)
    return _opened[key]


def load_annotations(json_file: str | Path, *, allow_outside: bool = False) -> tuple[CocoData, Findings]:
    """Read and check an annotation file as `open_annotations` does, and return its content as dictionaries.

    Args:
        json_file: Annotation file in COCO's instances format.
        allow_outside: Whether image file names may be absolute or contain `..`.

    Returns:
        The valid annotations, which callers must not modify, and a copy of the problems.

    Raises:
        DataError: The file is missing or not in COCO's format.
    """
    path = local_file(json_file)
    opened = open_annotations(path, allow_outside=allow_outside)
    key = _key(path, allow_outside)
    if key not in _unpacked:
        with garbage_kept():
            _unpacked[key] = opened.unpack()
    return _unpacked[key], copy.deepcopy(opened.findings)


def forget_annotations(json_file: str | Path) -> None:
    """Free the memory of an annotation file. What is on disk remains.

    Args:
        json_file: Annotation file, given as to `load_annotations`.
    """
    path = str(local_file(json_file))
    for key in [key for key in _opened if key[0] == path]:
        _forget(key)


def _forget(key: _Key) -> None:
    del _opened[key]
    _unpacked.pop(key, None)


def _key(json_file: Path, allow_outside: bool) -> _Key:
    """Return path, `allow_outside`, size and modification time; the size is -1 if the file is not accessible."""
    try:
        status = json_file.stat()
    except (OSError, ValueError):
        # Reading the file raises an error that says what is wrong.
        return str(json_file), allow_outside, -1, 0
    return str(json_file), allow_outside, status.st_size, status.st_mtime_ns


def _read(json_file: Path, allow_outside: bool) -> PackedCoco:
    return read_packed(json_file, Findings(), allow_outside=allow_outside)


def _open(json_file: Path, allow_outside: bool) -> PackedCoco:
    """Open the packed content of a file on disk, and write it before if necessary."""
    folder = cache_folder() / "annotations"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = _digest(json_file, folder)
        path = folder / f"{value_digest([digest, _checker(), allow_outside])[:32]}.safetensors"
        if (stored := _stored(path, digest)) is not None:
            return stored
        with FileLock(path.with_suffix(".lock"), timeout=_PATIENCE):
            # Another process may have written it in the meantime.
            stored = _stored(path, digest)
            return _write(json_file, allow_outside, path, digest) if stored is None else stored
    except OSError as error:  # also if the lock is not free in time
        logger.warning(
            "%s: cannot be used (%s). Every process reads %s itself. Set the environment variable PVT_DET_CACHE to a "
            "folder on a disk with free space.",
            folder,
            error.strerror or error,
            json_file,
        )
        return _read(json_file, allow_outside)


def _write(json_file: Path, allow_outside: bool, path: Path, digest: str) -> PackedCoco:
    logger.info("Reading and checking %s. Later runs use the result in %s.", json_file, path)
    data = _read(json_file, allow_outside)
    _remove_unused(path.parent)
    if data.sha256 == digest:
        write_packed(path, data)
        return open_packed(path)
    return data  # the file has just changed


def _stored(path: Path, digest: str) -> PackedCoco | None:
    """Open a file of the cache, or return None if there is none or it cannot be trusted."""
    try:
        data = open_packed(path)
        if data.sha256 != digest:
            raise DamagedFileError(f"{path} belongs to another annotation file")
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        logger.warning("%s. It is written again.", error)
        path.unlink(missing_ok=True)
        return None
    with suppress(OSError):  # of another user
        os.utime(path)
    return data


def _remove_unused(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _UNUSED_SECONDS:
                path.unlink()


def _digest(json_file: Path, folder: Path) -> str:
    """Return the SHA-256 of an annotation file, which is remembered for its path, size and modification time."""
    path, _, size, modified = _key(json_file.resolve(), False)
    note = folder / f"{value_digest([path, size, modified])[:32]}.sha256"
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{64}", known := note.read_text(encoding="ascii")):
            os.utime(note)
            return known
    digest = file_digest(json_file)
    if time.time_ns() - modified > _CLOCK_TICK:
        write_atomically(note, digest)
    return digest


@cache
def _checker() -> str:
    """Return a digest of the code that checks and packs: what an earlier version has found may be wrong."""
    modules = (checks, packed, packing, rle, strict_json)
    return value_digest([pvt_det.__version__, *(file_digest(str(module.__file__)) for module in modules)])
