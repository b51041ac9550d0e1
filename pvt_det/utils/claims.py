"""Share work among processes on several machines: each piece is done by one of them, in a folder that all can reach.

This needs nothing but a file system that creates and renames folders atomically, as local disks, NFS and Lustre do.
File locks are not used, because many shared file systems do not support them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from pvt_det.utils.files import sync_folder, write_atomically

# Seconds between signs of life, and without one after which a process counts as dead. Clients of NFS may see a sign of
# life a minute late.
HEARTBEAT, LEASE = 10.0, 120.0
_ATTEMPT = ".attempt-"
CLAIM_NAME, _RELEASED = "claim.json", "released"
logger = logging.getLogger(__name__)


class ClaimLost(Exception):
    """Another process has taken over a piece of work, because this one gave no sign of life for too long."""


@dataclass(frozen=True)
class Holder:
    """The process that works on a piece of work.

    Attributes:
        host: Name of its machine. "" if it is not known.
        pid: Id of the process, 0 if it is not known.
        seen: Time of its last sign of life, by the clock of the file system.
        is_alive: Whether it is known to be alive, and not only to have been so within the lease.
    """

    host: str
    pid: int
    seen: float
    is_alive: bool

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


class Claims:
    """Pieces of work that processes share.

    A piece of work is finished when the folder NAME exists. Until then, the process that works on it has the folder
    `NAME.attempt-N`, which only one process can create. If it dies, or stops the work, another process creates the
    folder with the next number.

    Args:
        folder: An existing folder.
        lease: Seconds without a sign of life after which a process counts as dead. One that runs on this machine counts
            as dead at once.
        heartbeat: Seconds between signs of life of this process.
    """

    def __init__(self, folder: Path, *, lease: float = LEASE, heartbeat: float = HEARTBEAT) -> None:
        self.folder = folder
        self.lease = lease
        self.heartbeat = heartbeat

    def is_finished(self, name: str) -> bool:
        """Return whether a piece of work is finished.

        Args:
            name: Name of the piece of work.
        """
        return (self.folder / name).is_dir()

    def claim(self, name: str) -> Claim | Holder | None:
        """Try to get the exclusive right to do a piece of work.

        Args:
            name: Name of the piece of work.

        Returns:
            The right, or the process that has it, or None if the work is finished.

        Raises:
            OSError: The folder cannot be read or written.
        """
        if self.is_finished(name):
            return None
        last = self._last(name)
        if last and (holder := self._holder(self.attempt(name, last))):
            return holder
        claim = Claim(self, name, last + 1)
        try:
            claim.folder.mkdir()
        except FileExistsError:  # another process was faster
            return self._holder(claim.folder) or self.claim(name)
        if self.is_finished(name):  # since it was checked, and its attempts were removed
            shutil.rmtree(claim.folder)
            return None
        write_atomically(claim.folder / CLAIM_NAME, json.dumps(_identity()))
        return claim

    def wait(self, name: str) -> Claim | Holder | None:
        """Claim a piece of work, and wait until it is clear whether a process that has it is alive.

        Args:
            name: Name of the piece of work.

        Returns:
            The right, or the living process that has it, or None if the work is finished.
        """
        seen: dict[tuple[str, int], float] = {}
        while isinstance(found := self.claim(name), Holder):
            if found.is_alive or found.seen > seen.setdefault((found.host, found.pid), found.seen):
                break
            time.sleep(min(1.0, self.heartbeat / 4))
        return found

    def holder(self, name: str) -> Holder | None:
        """Return the process that works on a piece of work, or None if there is none.

        Args:
            name: Name of the piece of work.
        """
        last = self._last(name)
        return self._holder(self.attempt(name, last)) if last else None

    def attempt(self, name: str, number: int) -> Path:
        """Return the folder of an attempt.

        Args:
            name: Name of the piece of work.
            number: Number of the attempt, from 1.
        """
        return self.folder / f"{name}{_ATTEMPT}{number}"

    def _last(self, name: str) -> int:
        """Return the number of the last attempt, 0 if there was none."""
        start = f"{name}{_ATTEMPT}"
        ends = [path.name.removeprefix(start) for path in self.folder.iterdir() if path.name.startswith(start)]
        return max((int(end) for end in ends if end.isdecimal()), default=0)

    def _holder(self, attempt: Path) -> Holder | None:
        """Return the process that works in a folder, or None if there is none any more."""
        if (attempt / _RELEASED).exists():
            return None
        host, pid, process, seen = "", 0, "", 0.0
        try:
            # Opened, because clients of NFS then ask the server when it was changed.
            with (attempt / CLAIM_NAME).open("rb") as file:
                seen = os.fstat(file.fileno()).st_mtime
                found = json.load(file)
                host, pid, process = str(found["host"]), int(found["pid"]), str(found["process"])
        except (OSError, ValueError, KeyError, TypeError):  # it has only created the folder, or was killed then
            try:
                seen = max(seen, attempt.stat().st_mtime)
            except OSError:
                return None
        if process and process.split()[0] == _machine():
            return Holder(host, pid, seen, is_alive=True) if process == _process(pid) else None
        return Holder(host, pid, seen, is_alive=False) if self._now() - seen < self.lease else None

    def _now(self) -> float:
        """Return the time by the clock of the file system, since those of machines differ."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".clock") as file:
            os.utime(file.name)
            return os.fstat(file.fileno()).st_mtime


class Claim:
    """The exclusive right to do a piece of work, and a context manager in which signs of life are given.

    If the block ends before `finish` was called, another process may continue at once.

    Args:
        claims: The pieces of work.
        name: Name of the piece of work.
        number: Number of the attempt, from 1.

    Attributes:
        folder: Folder for the work, which becomes the folder NAME when it is finished.
    """

    def __init__(self, claims: Claims, name: str, number: int) -> None:
        self.name = name
        self.folder = claims.attempt(name, number)
        self._claims = claims
        self._number = number
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim of {name}", daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._stop()
        if self._claims.is_finished(self.name):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        with suppress(OSError):  # if the disk is full, the end of this process releases it
            (self.folder / _RELEASED).touch()

    def earlier(self) -> list[Path]:
        """Return the folders of earlier attempts that were not finished, the newest first."""
        folders = (self._claims.attempt(self.name, number) for number in range(self._number - 1, 0, -1))
        return [folder for folder in folders if folder.is_dir()]

    def check(self) -> None:
        """Check that this process still has the right.

        Raises:
            ClaimLost: Another process has taken over.
        """
        if not self.folder.is_dir() or self._claims.attempt(self.name, self._number + 1).exists():
            raise ClaimLost(
                f"{self.name} was taken over by another process, because this one gave no sign of life for "
                f"{self._claims.lease:.0f} seconds."
            )

    def finish(self) -> None:
        """Make the folder of this attempt that of the finished work, in one step.

        Raises:
            ClaimLost: Another process has taken over.
            OSError: The folder cannot be renamed.
        """
        self.check()
        self._stop()
        earlier, finished = self.earlier(), self._claims.folder / self.name
        try:
            self.folder.rename(finished)
        except OSError:
            if self._claims.is_finished(self.name):
                raise ClaimLost(f"{self.name} was finished by another process.") from None
            raise
        sync_folder(self._claims.folder)
        (finished / CLAIM_NAME).unlink()
        for folder in earlier:
            shutil.rmtree(folder, ignore_errors=True)

    def _stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(self._claims.heartbeat):
            try:
                os.utime(self.folder / CLAIM_NAME)
            except OSError as error:  # a network that is down for a moment; `check` finds out if it lasted too long
                logger.warning("%s: no sign of life could be given (%s).", self.folder, error.strerror)


def create_folder(folder: Path, name: str, content: str) -> None:
    """Create a folder that contains a file, in one step. If the folder exists, nothing is changed.

    Args:
        folder: The folder. Its parent must exist.
        name: Name of the file in it.
        content: Content of the file, as for `write_atomically`.

    Raises:
        OSError: The folder cannot be created.
    """
    if folder.is_dir():
        return
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        write_atomically(temporary / name, content)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was not faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _identity() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "process": _process(os.getpid())}


def _process(pid: int) -> str:
    """Return what distinguishes a process from all others on all machines, or "" if that is unknown or it has ended."""
    try:
        # The name of the program is in parentheses and may contain spaces.
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    start = values[18]  # in clock ticks since the machine was started
    return "" if state == "Z" or not _machine() else f"{_machine()} {pid} {start}"


@cache
def _machine() -> str:
    """Return what distinguishes process ids of this machine or container from those of others, "" if unknown.

    Names of hosts may be equal in containers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
