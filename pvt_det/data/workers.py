"""Data loader workers that ignore signals to their process group, end with the main process, and need no /dev/shm."""

from __future__ import annotations

import logging
import multiprocessing
import os
import platform
import signal
import sys
import weakref
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from threading import Thread
from types import TracebackType
from typing import Any

import cv2
import torch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.multiprocessing.reductions import reduce_storage
from torch.utils.data import DataLoader
from torch.utils.data._utils.signal_handling import _remove_worker_pids, _set_worker_pids

logger = logging.getLogger(__name__)


# Windows has neither SIGHUP nor SIGKILL.
_IGNORED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class WorkerLoader(DataLoader):
    """Data loader for workers that are initialized by `start_worker`.

    When the program exits, Python sends SIGTERM to the workers of an iterator that is still alive, and waits for them.
    When an iterator is garbage collected as part of a reference cycle, as after an error, its request to end does not
    reach them, and PyTorch sends SIGTERM. These workers ignore SIGTERM, so the loader kills them first.
    """

    def __iter__(self) -> Any:
        """Return an iterator whose workers are killed when it is deleted or the program exits."""
        iterator = super().__iter__()
        # These attributes exist only when images are pinned for a GPU.
        names = ("_pin_memory_thread", "_pin_memory_thread_done_event", "_worker_result_queue")
        pinning = [getattr(iterator, name, None) for name in names]
        weakref.finalize(iterator, end_workers, id(iterator), getattr(iterator, "_workers", []), *pinning)
        return iterator


def start_worker(worker_id: int) -> None:
    """Initialize a worker process; pass this function as `worker_init_fn` of a data loader.

    Args:
        worker_id: Index of the worker. Not used.
    """
    # Ends the worker at once if the training process is killed. It would otherwise wait for its pipes, which other
    # workers keep open.
    if platform.system() == "Linux":
        _prctl_pr_set_pdeathsig(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    # A fork server is a process in between, which ends with the training process.
    is_child = multiprocessing.get_start_method() != "forkserver"
    if parent is not None and is_child and os.getppid() != parent.pid:  # killed before the lines above
        os._exit(1)
    # These signals often reach the whole process group. The training process needs its workers to finish its step, and
    # then ends them itself.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # the workers already run in parallel; the data loader sets torch's threads to 1
    ForkingPickler.register(torch.UntypedStorage, _reduce_storage)
    sys.excepthook = _report


def is_worker_death(error: RuntimeError) -> bool:
    """Return whether an error says that a worker process was killed, of a data loader or a `ProcessPoolExecutor`.

    Args:
        error: The error.
    """
    return isinstance(error, BrokenProcessPool) or "DataLoader worker (pid" in str(error)


def _reduce_storage(storage: torch.UntypedStorage) -> Any:
    """Send a tensor's memory through /dev/shm, or through a pipe if that is full.

    Docker gives a container 64 MiB of /dev/shm. If a batch does not fit, PyTorch drops it, and the main process would
    wait for it forever.
    """
    try:
        return reduce_storage(storage)
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        _warn_of_full_shared_memory()
        content = torch.empty(0, dtype=torch.uint8).set_(storage)
        return _storage, (content.numpy().tobytes(),)


def _storage(content: bytes) -> torch.UntypedStorage:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()


@cache
def _warn_of_full_shared_memory() -> None:
    # Once per worker, because of the cache.
    logger.warning(
        "/dev/shm is full, so batches take a slower way to the training process. Make it larger, in Docker with "
        "--shm-size 8g, or set DATALOADER.NUM_WORKERS (train-cls: --workers) to 0."
    )


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print an error of the thread that hands over tensors, unless the training process was killed meanwhile."""
    if not isinstance(error, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, traceback)


def end_workers(
    identity: int, workers: list[BaseProcess], pinning: Thread | None = None, done: Any = None, queue: Any = None
) -> None:
    """Stop the thread that pins images in memory, then kill the workers of an iterator.

    The thread copies images from the workers into pinned memory, and would fail if a worker died while it reads.

    Args:
        identity: What `id` returned for the iterator.
        workers: Worker processes.
        pinning: Thread that pins images; None without a GPU.
        done: Event that asks the thread to stop; None without a GPU.
        queue: Queue that the thread reads from; None without a GPU.
    """
    if pinning is not None and pinning.is_alive():
        done.set()
        queue.put((None, None))
        pinning.join()
    # PyTorch watches the workers of an iterator until it is deleted, and raises an error in the main thread, whatever
    # that does, when one of them is killed. After this, it watches none.
    with suppress(ValueError):  # it has been deleted
        _remove_worker_pids(identity)
        _set_worker_pids(identity, ())
    for worker in workers:
        if worker.is_alive():
            worker.kill()
