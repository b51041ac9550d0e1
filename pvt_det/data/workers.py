"""Loader workers that outlive a signal to their process group, and end with the program."""

from __future__ import annotations

import signal
import weakref
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import cv2
from torch.utils.data import DataLoader


class WorkerLoader(DataLoader):
    """A loader for workers started by `start_worker`.

    At exit Python sends SIGTERM to the workers of an iterator that still lives, which they ignore, and waits for them:
    they are ended before that.
    """

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        # The last three are there for a GPU only.
        parts = ("_pin_memory_thread", "_pin_memory_thread_done_event", "_worker_result_queue")
        pinning = [getattr(iterator, name, None) for name in parts]
        weakref.finalize(iterator, end_workers, getattr(iterator, "_workers", []), *pinning)
        return iterator


def start_worker(worker_id: int) -> None:
    """Prepare a worker process; `worker_init_fn` of a loader."""
    # These often reach the whole process group. The training process needs its workers to finish its step, and ends
    # them itself.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)  # workers are the parallelism; torch's threads are set to 1 by the loader


def end_workers(workers: list[BaseProcess], pinning: Thread | None, done: Any, queue: Any) -> None:
    """Kill the workers of an iterator, and before them the thread that pins their images.

    That thread copies what the workers send into pinned memory, and would fail where one dies while it reads.

    Args:
        workers: The worker processes.
        pinning: The thread; None without a GPU.
        done: The event that asks the thread to stop.
        queue: What the thread reads from.
    """
    if pinning is not None and pinning.is_alive():
        done.set()
        queue.put((None, None))
        pinning.join()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
