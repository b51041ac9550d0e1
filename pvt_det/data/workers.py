"""Data loader workers that ignore signals to their process group, and end with the main process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import weakref
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import cv2
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils.data import DataLoader


class WorkerLoader(DataLoader):
    """Data loader for workers that are initialized by `start_worker`.

    At exit, Python sends SIGTERM to the workers of an iterator that is still alive, and waits for them. These workers
    ignore SIGTERM, so the loader kills them first.
    """

    def __iter__(self) -> Any:
        """Return an iterator whose workers are killed when it is deleted or the program exits."""
        iterator = super().__iter__()
        # These attributes exist only when images are pinned for a GPU.
        names = ("_pin_memory_thread", "_pin_memory_thread_done_event", "_worker_result_queue")
        pinning = [getattr(iterator, name, None) for name in names]
        weakref.finalize(iterator, end_workers, getattr(iterator, "_workers", []), *pinning)
        return iterator


def start_worker(worker_id: int) -> None:
    """Initialize a worker process; pass this function as `worker_init_fn` of a data loader.

    Args:
        worker_id: Index of the worker. Not used.
    """
    # Ends the worker at once if the training process is killed. It would otherwise wait for its pipes, which other
    # workers keep open.
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # killed before the line above
        os._exit(1)
    # These signals often reach the whole process group. The training process needs its workers to finish its step, and
    # then ends them itself.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # the workers already run in parallel; the data loader sets torch's threads to 1


def end_workers(workers: list[BaseProcess], pinning: Thread | None, done: Any, queue: Any) -> None:
    """Stop the thread that pins images in memory, then kill the workers of an iterator.

    The thread copies images from the workers into pinned memory, and would fail if a worker died while it reads.

    Args:
        workers: Worker processes.
        pinning: Thread that pins images; None without a GPU.
        done: Event that asks the thread to stop; None without a GPU.
        queue: Queue that the thread reads from; None without a GPU.
    """
    if pinning is not None and pinning.is_alive():
        done.set()
        queue.put((None, None))
        pinning.join()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
