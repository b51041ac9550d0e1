"""A cache on disk for what was read from object stores, which several processes share.

Every entry is written to a temporary file and then renamed, and ends with a checksum that is verified whenever it is
read. A process that is killed therefore leaves no broken entry, and one that the disk has damaged is fetched again.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pvt_det.errors import ConfigError
from pvt_det.utils.files import TEMPORARY_SUFFIX
from pvt_det.utils.paths import cache_folder

logger = logging.getLogger(__name__)

SIZE_VARIABLE, _DEFAULT_GIB = "PVT_DET_DATA_CACHE_GIB", 50.0
_CHECKSUM = hashlib.sha256().digest_size
# What is written between two looks at the size of the cache, and what remains after removing entries, as shares of its
# limit. Several processes write at a time.
_INTERVAL, _REMAINS = 0.01, 0.9
_OLD_SECONDS = 3600.0  # no write takes that long


def cache_limit() -> int:
    """Return the size of the cache in bytes, from the environment variable PVT_DET_DATA_CACHE_GIB.

    Raises:
        ConfigError: Its value is not a positive number.
    """
    text = os.environ.get(SIZE_VARIABLE, str(_DEFAULT_GIB))
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise ConfigError(f"the environment variable {SIZE_VARIABLE} is {text!r}. Expected a number of GiB above 0.")
    return int(size * 2**30)


class Cache:
    """Entries of bytes by key, in files.

    Args:
        limit: Size in bytes above which the least recently used entries are removed.
        folder: The folder. By default the one of this package's cache.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit = limit
        self.folder = cache_folder() / "objects" if folder is None else folder
        self._unseen = math.inf  # bytes written since the last look at the size

    def path(self, key: str) -> Path:
        """Return the file of an entry.

        Args:
            key: Key of the entry, hexadecimal digits.
        """
        return self.folder / key[:2] / key

    def read(self, key: str, size: int, digest: int | None = None) -> bytes | None:
        """Read an entry. A damaged one is removed.

        Args:
            key: Key of the entry.
            size: Size of the content in bytes.
            digest: First 8 bytes of the SHA-256 of the content as a number, if it is known.

        Returns:
            The content, or None if the entry does not exist or is damaged.
        """
        path = self.path(key)
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        content = stored[:-_CHECKSUM]
        sha256 = hashlib.sha256(content).digest()
        is_whole = len(content) == size and stored[-_CHECKSUM:] == _checksum(key, sha256)
        if is_whole and (digest is None or digest == short_digest(sha256)):
            with suppress(OSError):
                os.utime(path)  # the time of the last use
            return content
        logger.warning("%s is damaged. It is fetched again.", path)
        path.unlink(missing_ok=True)
        return None

    def has(self, key: str) -> bool:
        """Return whether there is an entry, which may be damaged.

        Args:
            key: Key of the entry.
        """
        return self.path(key).exists()

    def write(self, key: str, content: bytes) -> None:
        """Write an entry.

        Args:
            key: Key of the entry.
            content: Its content.

        Raises:
            OSError: It cannot be written.
        """
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{key}.{os.getpid()}{TEMPORARY_SUFFIX}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.write(_checksum(key, hashlib.sha256(content).digest()))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._unseen += len(content)
        if self._unseen > _INTERVAL * self.limit:
            self._unseen = 0
            self.trim()

    def trim(self) -> None:
        """Remove the least recently used entries if the cache exceeds its limit, and what killed writers left."""
        with suppress(Timeout, OSError), FileLock(self.folder / ".lock", timeout=0):
            entries = sorted(self._entries())
            total = sum(size for _, size, _ in entries)
            if total <= (1 - _INTERVAL) * self.limit:
                return
            for _, size, path in entries:
                if total <= _REMAINS * self.limit:
                    break
                with suppress(OSError):
                    path.unlink()
                    total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield the time of the last use, size and path of every entry."""
        for folder in self.folder.iterdir():
            for entry in os.scandir(folder) if folder.is_dir() else ():
                with suppress(FileNotFoundError):  # another process removed it
                    status = entry.stat()
                    if not entry.name.endswith(TEMPORARY_SUFFIX):
                        yield status.st_mtime, status.st_size, Path(entry.path)
                    elif time.time() - status.st_mtime > _OLD_SECONDS:
                        Path(entry.path).unlink()


def short_digest(sha256: bytes) -> int:
    """Return the first 8 bytes of a SHA-256 as a number, as in the index of shards.

    Args:
        sha256: The 32 bytes.
    """
    return int.from_bytes(sha256[:8], "little")


def _checksum(key: str, sha256: bytes) -> bytes:
    """Return the checksum of an entry. It depends on the key too, in case files are exchanged."""
    return hashlib.sha256(key.encode() + sha256).digest()
