"""Workers of data loaders."""

import subprocess
import sys

SCRIPT = """
import torch
from torch.utils.data import TensorDataset
from pvt_det.data.workers import WorkerLoader, start_worker

batches = iter(WorkerLoader(TensorDataset(torch.arange(1000)), num_workers=1, worker_init_fn=start_worker))
print(next(batches)[0].item())
"""


def test_program_ends_with_an_iterator_still_open():
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stdout) == (0, "0\n"), found.stderr
