"""Notice when another process of a group dies or hangs, and name it.

A thread of every process publishes a sign of life in the store of the process group: its host, the number of batches
that it has read, and where its main thread is. When a collective operation fails or does not return, the other
processes read these to say which rank is missing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from pvt_det.errors import Interrupted, RankError

# Seconds between signs of life, and how many may be missing before a process counts as silent.
_PERIOD, _MISSING = 2.0, 4
# The same for a process whose id does not exist. It may still run, because containers can share a host name.
_MISSING_IF_GONE = 2
# Number of periods that rank 0, which may hold the store, waits for the others at the end.
_LEAVE = 3
# Seconds after the timeout of a collective operation at which a process that still waits is ended. On a CPU the
# operation has then raised an error; a wait for a GPU raises none.
_EXTRA = 30.0
# A main thread waits for other processes if it is in one of these folders of PyTorch.
_WAITING = ("/torch/distributed/", "/torch/autograd/")
_RUNNING, _LOST, _FAILED, _ENDED = "running", "lost", "failed", "ended"
Item = TypeVar("Item")
logger = logging.getLogger(__name__)
_current: RankWatch | None = None


class RankWatch:
    """Publishes this process's sign of life, and finds out which other process is missing.

    Args:
        store: A store that all processes share, used by no other thread.
        rank: Rank of this process.
        world_size: Number of processes.
        timeout: Timeout of collective operations.
        period: Seconds between signs of life.

    Attributes:
        batches: Number of batches that this process has read.
        resume_command: The command that resumes the run, shown if another process is missing. May be empty.
    """

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, timeout: timedelta, *, period: float = _PERIOD
    ) -> None:
        self.batches = 0
        self.resume_command = ""
        self._store = store
        self._rank = rank
        self._others = [other for other in range(world_size) if other != rank]
        self._timeout = timeout.total_seconds()
        self._period = period
        self._state = _RUNNING
        self._beat, self._exchanges = 0, 0
        self._is_final = False
        self._missing: set[int] = set()
        self._watched_thread = threading.get_ident()
        self._progress = (0, time.monotonic())
        # The last sign of life of each other process, with the time at which it was first seen.
        self._records: dict[int, dict[str, Any]] = {}
        self._stopping, self._wake = threading.Event(), threading.Event()
        # Separate threads: reading the store blocks if the process that holds it hangs.
        self._exchange = threading.Thread(target=self._exchange_signs, name="signs_of_life", daemon=True)
        self._judge = threading.Thread(target=self._end_if_stuck, name="rank_watch", daemon=True)

    def start(self) -> None:
        """Start publishing signs of life."""
        self._exchange.start()
        self._judge.start()

    def stop(self, state: str) -> None:
        """Publish the final state and stop.

        Args:
            state: "ended", or "failed" if this process raised an error.
        """
        self._state = self._state if self._state == _LOST else state
        self._is_final = True
        if self._rank == 0:
            self._wait_for(self._is_last, _LEAVE * self._period)
        self._stopping.set()
        self._wake.set()
        self._exchange.join(5)

    def explain(self) -> str:
        """Find out which other processes are missing. Takes a few seconds.

        Returns:
            A sentence for each missing process, with its rank, process id and host.
        """
        self._state = _LOST
        # The last sign of life of a dead process may not have been read yet. Only later ones count.
        before = self._exchanges
        self._wait_for(lambda: self._exchanges > before + 1, self._period)
        started = time.monotonic()
        self._wait_for(lambda: self._all_seen_since(started), _MISSING * self._period)
        sentences = {rank: text for rank in self._others if (text := self._describe(rank, started))}
        self._missing = set(sentences)
        return " ".join(sentences.values()) or "All other ranks respond, and wait too."

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(self._period / 10)

    def _exchange_signs(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.is_set()
            try:
                self._publish()
                if not is_last:  # rank 0 may leave with the store now
                    self._read_others()
            except RuntimeError as error:  # the process that holds the store has ended
                logger.debug("Cannot exchange signs of life: %s", error)
            self._exchanges += 1
            if not is_last:
                self._wake.wait(self._period)
                self._wake.clear()

    def _end_if_stuck(self) -> None:
        while not self._stopping.wait(self._period):
            if self._state == _RUNNING and self._is_stuck():
                self._give_up()

    def _publish(self) -> None:
        self._beat += 1
        place, waits = self._place()
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "beat": self._beat,
            "batches": self.batches,
            "place": place,
            "waits": waits,
            "state": self._state,
            "final": self._is_final,
        }
        self._store.set(f"rank_watch/{self._rank}", json.dumps(record))

    def _read_others(self) -> None:
        now = time.monotonic()
        for rank in self._others:
            key = f"rank_watch/{rank}"
            if not self._store.check([key]):
                continue
            record, known = json.loads(self._store.get(key)), self._records.get(rank)
            seen = known["seen"] if known and known["beat"] == record["beat"] else now
            self._records[rank] = record | {"seen": seen}

    def _place(self) -> tuple[str, bool]:
        """Return where the main thread is, and whether it waits for other processes."""
        innermost = frame = sys._current_frames().get(self._watched_thread)
        if innermost is None:
            return "unknown", False
        waits = False
        while frame is not None:
            waits = waits or any(part in frame.f_code.co_filename for part in _WAITING)
            frame = frame.f_back
        return f"{innermost.f_code.co_filename}:{innermost.f_lineno} ({innermost.f_code.co_name})", waits

    def _is_last(self) -> bool:
        """Return whether the other processes have given their last sign of life."""
        return all(rank in self._missing or self._records.get(rank, {}).get("final") for rank in self._others)

    def _all_seen_since(self, moment: float) -> bool:
        records = [self._records.get(rank) for rank in self._others]
        silent_since = time.monotonic() - _MISSING_IF_GONE * self._period
        return all(
            r is not None
            and (r["seen"] > moment or r["state"] != _RUNNING or (r["seen"] < silent_since and _is_gone(r)))
            for r in records
        )

    def _describe(self, rank: int, moment: float) -> str:
        """Describe what is wrong with another process, or return "" if it does its part."""
        record = self._records.get(rank)
        if record is None:
            return f"Rank {rank} has given no sign of life."
        name = f"Rank {rank} (process {record['pid']} on {record['host']})"
        if record["state"] == _FAILED:
            return f"{name} ended with an error; its own message says why."
        if record["state"] == _ENDED:
            return f"{name} has ended."
        if record["state"] == _LOST:
            return ""
        if record["seen"] <= moment:
            if _is_gone(record):
                return f"{name} has died: it was killed, or it ended with an error of its own."
            silent = time.monotonic() - record["seen"]
            return f"{name} has not responded for {silent:.0f} seconds: it hangs or has died."
        if record["batches"] < self.batches or not record["waits"]:
            return f"{name} did not arrive: it is in {record['place']}."
        return ""

    def _is_stuck(self) -> bool:
        """Return whether this process reads no more batches and another one is behind it or silent."""
        now = time.monotonic()
        if self.batches != self._progress[0]:
            self._progress = (self.batches, now)
        if now - self._progress[1] <= self._timeout + _EXTRA:
            return False
        return any(
            now - record["seen"] > self._timeout or record["batches"] < self.batches
            for record in list(self._records.values())
            if record["state"] == _RUNNING
        )

    def _give_up(self) -> None:
        message = f"error: {missing_ranks(self.explain(), self.resume_command)}"
        logger.error("%s", message)
        print(message, file=sys.stderr, flush=True)
        # The main thread waits for a GPU and cannot raise an error.
        os._exit(RankError.exit_code)


def missing_ranks(explanation: str, resume_command: str) -> str:
    """Build the message about missing processes.

    Args:
        explanation: The result of `RankWatch.explain`.
        resume_command: The command that resumes the run, or "".
    """
    hint = f" Resume with: {resume_command}" if resume_command else ""
    return f"The connection to another process of this run is lost. {explanation} Saved checkpoints are intact.{hint}"


@contextmanager
def watch_ranks(timeout: timedelta) -> Iterator[None]:
    """Watch the other processes of the default process group, which must be initialized.

    Args:
        timeout: Timeout of collective operations.
    """
    global _current
    if dist.get_world_size() == 1:
        yield
        return
    store = dist.distributed_c10d._get_default_store().clone()
    _current = watch = RankWatch(store, dist.get_rank(), dist.get_world_size(), timeout)
    watch.start()
    state = _FAILED
    try:
        yield
        state = _ENDED
    except Interrupted:
        state = _ENDED
        raise
    except SystemExit as error:
        state = _ENDED if error.code == Interrupted.exit_code else _FAILED
        raise
    finally:
        watch.stop(state)
        _current = None


@contextmanager
def missing_ranks_named(resume_command: str) -> Iterator[None]:
    """Turn errors of collective operations into an error that names the process that died or hangs.

    Args:
        resume_command: The command that resumes the run, or "".

    Raises:
        RankError: If the connection to another process was lost, or a collective operation took too long.
    """
    if _current is not None:
        _current.resume_command = resume_command
    try:
        yield
    except RuntimeError as error:
        if _current is None or not _is_lost_connection(error):
            raise
        # A launcher sends SIGTERM as soon as one process has died.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RankError(missing_ranks(_current.explain(), resume_command)) from error


def count_batches(batches: Iterable[Item]) -> Iterator[Item]:
    """Return an iterator of batches that records that this process makes progress.

    Args:
        batches: The batches. Their iterator is created at once.
    """

    def count(batch: Item) -> Item:
        if _current is not None:
            _current.batches += 1
        return batch

    return map(count, batches)


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _is_gone(record: dict[str, Any]) -> bool:
    """Return whether a process has ended, which is known on its own host only."""
    return record["host"] == socket.gethostname() and not _exists(record["pid"])


def _exists(pid: int) -> bool:
    if os.name == "nt":  # where os.kill sends Ctrl-C for signal 0
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
