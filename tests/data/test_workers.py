"""Data loader workers end with the program, and after the thread that pins their images."""

import queue
import subprocess
import sys
import threading
from types import SimpleNamespace

from pvt_det.data.workers import end_workers

SCRIPT = """
import torch
from torch.utils.data import TensorDataset
from pvt_det.data.workers import WorkerLoader, start_worker

batches = iter(WorkerLoader(TensorDataset(torch.arange(1000)), num_workers=1, worker_init_fn=start_worker))
print(next(batches)[0].item())
"""


def test_program_exits_with_an_open_iterator():
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stdout) == (0, "0\n"), found.stderr


def test_pinning_thread_stops_before_the_workers():
    done, results, killed = threading.Event(), queue.Queue(), []

    def pin():
        while not done.is_set():
            results.get()

    thread = threading.Thread(target=pin, daemon=True)
    thread.start()
    worker = SimpleNamespace(is_alive=lambda: True, kill=lambda: killed.append(thread.is_alive()))
    end_workers([worker], thread, done, results)
    assert killed == [False]
