"""Lock an output folder so that only one run writes to it at a time."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pvt_det.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"
# On Windows, nobody can read a locked byte, so one after the process id is locked.
_LOCKED_BYTE = 2**20


class FolderLock:
    """Context manager that locks a folder for one process.

    The operating system releases the lock when the process ends, even if it is killed, so no stale lock remains. Child
    processes do not inherit the lock, so data loader workers cannot keep it alive.

    Args:
        folder: An existing folder.

    Raises:
        ConfigError: On entering, if another process holds the lock or the folder is not writable.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._file: int | None = None

    def __enter__(self) -> FolderLock:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"Folder {self._path.parent} cannot be written to: {error.strerror}. Choose another with --output."
            ) from error
        try:
            _lock(self._file)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            self._close()
            raise ConfigError(
                f"Another run (process {holder}) is writing to {self._path.parent}. Wait for it to end, or choose "
                "another folder with --output."
            ) from error
        except OSError as error:
            logging.getLogger(__name__).warning(
                "%s does not support file locks (%s). Make sure that no other run writes to it.",
                self._path.parent,
                error.strerror,
            )
            return self
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, f"{os.getpid()}\n".encode())
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _lock(file: int) -> None:
    """Lock an open file, or raise `PermissionError` or `BlockingIOError` if another process has locked it."""
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    finally:
        os.lseek(file, 0, os.SEEK_SET)
