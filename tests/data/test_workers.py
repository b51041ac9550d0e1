"""Data loader workers end with the program, quietly, and after the thread that pins their images."""

import gc
import queue
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import torch
from torch.utils.data import TensorDataset

from pvt_det.data.workers import WorkerLoader, end_workers, start_worker

SCRIPT = """
import torch
from torch.utils.data import TensorDataset
from pvt_det.data.workers import WorkerLoader, start_worker

batches = iter(WorkerLoader(TensorDataset(torch.arange(1000)), num_workers=1, worker_init_fn=start_worker))
print(next(batches)[0].item())
"""
REPORT = """
import sys
from pvt_det.data.workers import start_worker

start_worker(0)
for error in (EOFError(), ConnectionResetError(), ValueError("a fault")):
    try:
        raise error
    except Exception:
        sys.excepthook(*sys.exc_info())
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=300)


def test_program_exits_with_an_open_iterator():
    found = run(SCRIPT)
    assert (found.returncode, found.stdout, found.stderr) == (0, "0\n", "")


def test_only_a_lost_connection_is_not_reported():
    found = run(REPORT)
    assert found.stderr.count("Traceback") == 1
    assert found.stderr.endswith("ValueError: a fault\n")


def test_collected_iterator_does_not_disturb_the_main_thread():
    """Its workers are killed, which PyTorch reported in the main thread, whatever that was waiting for."""
    loader = WorkerLoader(TensorDataset(torch.arange(1000)), num_workers=1, worker_init_fn=start_worker)
    cycle = SimpleNamespace(batches=iter(loader))
    cycle.itself = cycle
    next(cycle.batches)
    worker = psutil.Process(cycle.batches._workers[0].pid)
    del cycle
    collect = threading.Thread(target=gc.collect)
    collect.start()
    while collect.is_alive():
        time.sleep(0.001)  # the main thread runs signal handlers between its steps
    collect.join()
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_pinning_thread_stops_before_the_workers():
    done, results, killed = threading.Event(), queue.Queue(), []

    def pin():
        while not done.is_set():
            results.get()

    thread = threading.Thread(target=pin, daemon=True)
    thread.start()
    worker = SimpleNamespace(is_alive=lambda: True, kill=lambda: killed.append(thread.is_alive()))
    end_workers(0, [worker], thread, done, results)
    assert killed == [False]
