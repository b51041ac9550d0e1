"""Check the images of a data set in parallel, wherever they are, and remember the sizes of intact local files."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from filelock import FileLock

from pvt_det.data import images
from pvt_det.data.images import MAX_PIXELS, check_size, read_header, read_image
from pvt_det.data.storage.places import attach, file_fault, knows_headers, prefetch
from pvt_det.data.storage.references import Reference, join
from pvt_det.errors import DataError, StorageError
from pvt_det.utils.arrays import DamagedFileError, map_arrays, pack_strings, split_strings, write_arrays
from pvt_det.utils.digest import file_digest, value_digest
from pvt_det.utils.environment import available_cores
from pvt_det.utils.paths import cache_folder

logger = logging.getLogger(__name__)

_FORMAT = "pvt_det image sizes 1"
# Threads hide the latency of a disk or a network. One thread reads files in memory four times as fast. Handing over a
# single file would take longer than reading it.
_THREADS, _FILES_AT_A_TIME = 16, 200
# Threads are used once this thread has waited for at least this many seconds, and this many times as long as it worked.
_WAITED, _WAITED_PER_WORK = 0.05, 2
# Fewer files are checked in a moment.
_MANY = 2000
# Seconds to wait for another process that checks the same files.
_PATIENCE = 30 * 60
# A file may be changed again without a new time of modification within this many nanoseconds.
_CLOCK_TICK = 2 * 10**9
# Bytes that the header of a usual JPEG file fits into, and of its end.
_HEADER, _TAIL = 4096, 64
_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
# Marks of data in a header that may say that the image is rotated.
_ROTATION_MARKS = (b"Exif", b"http://ns.adobe.com/xap/")

# Size and modification time of a file, and width and height of its image in pixels.
_Seen = tuple[int, int, int, int]


def image_faults(
    root: Reference, names: Sequence[str], sizes: Sequence[tuple[int, int]], *, decode: bool
) -> dict[int, str]:
    """Find images that are missing, are broken, or have another size than expected.

    Without `decode`, the header and the last bytes of local files are read, of shards only the index, and of individual
    objects only the names are compared. If there are many local files, the sizes of those that are in order are
    remembered in the cache folder, and a file that has not changed is not read again.

    Args:
        root: Folder that the names are relative to, a path or URL.
        names: File names.
        sizes: Expected width and height of each image in pixels.
        decode: Whether to decode each image.

    Returns:
        What is wrong, by the index of the image.

    Raises:
        StorageError: An object store does not answer, refuses access, or has changed.
    """
    if not decode and not knows_headers(root):
        found = ((index, join(root, name)) for index, name in enumerate(names))
        return {index: f"image {path} {fault}" for index, path in found if (fault := file_fault(path))}
    check = _Check(root, names, sizes, decode)
    if decode or attach(root) or len(names) < _MANY:
        return check.run()
    path = cache_folder() / "images" / f"{value_digest([str(Path(root).resolve()), _reader()])[:32]}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check.known = _load(path)
        # The first time, the other processes of a run wait. Then, each looks whether the files have changed.
        with nullcontext() if check.known else FileLock(path.with_suffix(".lock"), timeout=_PATIENCE):
            check.known = check.known or _load(path)
            faults = check.run()
            if check.new:
                check.known |= check.new
                _save(path, check.known)
            return faults
    except OSError as error:
        logger.warning(
            "%s: cannot be used (%s). Every start reads all image files.", path.parent, error.strerror or error
        )
        return check.run()


class _Check:
    """The check of many files. `known` are those of earlier checks by name, and `new` those to remember."""

    def __init__(self, root: Reference, names: Sequence[str], sizes: Sequence[tuple[int, int]], decode: bool) -> None:
        self.root, self.names, self.sizes, self.decode = root, names, sizes, decode
        self.read = self._decode if decode else self._size
        self.threads = available_cores() if decode else _THREADS
        self.known: dict[str, _Seen] = {}
        self.new: dict[str, _Seen] = {}

    def run(self) -> dict[int, str]:
        """Return what is wrong, by the index of the image."""
        starts = iter(range(0, len(self.names), _FILES_AT_A_TIME))
        found = [] if self.decode else self._faults_until_slow(starts)
        with ThreadPoolExecutor(self.threads) as pool:
            return dict(chain(found, *pool.map(self._faults, starts)))

    def _faults_until_slow(self, starts: Iterator[int]) -> list[tuple[int, str]]:
        """Check files in this thread until it waits for the disk, and return what is wrong with them."""
        found, waited, worked = [], 0.0, 0.0
        for start in starts:
            time_before, work_before = time.perf_counter(), time.thread_time()
            found += self._faults(start)
            work = time.thread_time() - work_before
            worked += work
            waited += time.perf_counter() - time_before - work
            if waited > max(_WAITED, _WAITED_PER_WORK * worked):
                break
        return found

    def _faults(self, start: int) -> list[tuple[int, str]]:
        found, names = [], self.names[start : start + _FILES_AT_A_TIME]
        if self.decode:
            prefetch(join(self.root, name) for name in names)
        for index, name in enumerate(names, start):
            try:
                size = self.read(name)
                if size != self.sizes[index]:
                    check_size(join(self.root, name), size, self.sizes[index])
            except StorageError:
                raise
            except DataError as error:
                found.append((index, str(error)))
        return found

    def _decode(self, name: str) -> tuple[int, int]:
        path = join(self.root, name)
        if fault := file_fault(path):
            raise DataError(f"image {path} {fault}")
        height, width = read_image(path, "RGB").shape[:2]
        return width, height

    def _size(self, name: str) -> tuple[int, int]:
        path = os.path.join(self.root, name)  # noqa: PTH118 (a Path takes longer than the system call)
        try:
            status = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):
            # Missing, or in a shard.
            return read_header(join(self.root, name))
        found = self.known.get(name)
        if found is not None and found[:2] == (status.st_size, status.st_mtime_ns):
            return found[2:]
        size = (_jpeg_size(path) if stat.S_ISREG(status.st_mode) else None) or read_header(join(self.root, name))
        if time.time_ns() - status.st_mtime_ns > _CLOCK_TICK:
            self.new[name] = (status.st_size, status.st_mtime_ns, *size)
        return size


def _jpeg_size(path: str) -> tuple[int, int] | None:
    """Read width and height of a usual JPEG file ten times as fast as Pillow, or return None if it is unusual."""
    with suppress(OSError, ValueError), open(path, "rb", buffering=0) as file:  # noqa: PTH123
        header = file.read(_HEADER)
        if not header.startswith(_START_OF_JPEG) or any(mark in header for mark in _ROTATION_MARKS):
            return None
        file.seek(-min(_TAIL, len(header)), os.SEEK_END)
        if _END_OF_JPEG not in file.read(_TAIL):
            return None
        height, width, *_ = simplejpeg.decode_jpeg_header(header)
        return (width, height) if width * height <= MAX_PIXELS else None
    return None


def _load(path: Path) -> dict[str, _Seen]:
    try:
        arrays, facts = map_arrays(path)
        if facts.get("format") != _FORMAT:
            raise DamagedFileError(f"{path} has another format")
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        logger.warning("%s. All image files are read.", error)
        return {}
    names = split_strings(arrays["names"], arrays["name_ends"])
    return dict(zip(names, map(tuple, arrays["seen"].tolist()), strict=True))


def _save(path: Path, seen: dict[str, _Seen]) -> None:
    names, ends = pack_strings(seen)
    rows = np.array(list(seen.values()), dtype=np.int64)
    write_arrays(path, {"names": names, "name_ends": ends, "seen": rows}, {"format": _FORMAT})


@cache
def _reader() -> str:
    """Return a digest of the code that reads headers."""
    return value_digest([file_digest(str(images.__file__)), file_digest(__file__)])
