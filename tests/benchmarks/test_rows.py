"""An implementation that runs out of GPU memory is reported in its row, and the others continue."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from rich.console import Console

from benchmarks.implementations import OURS, TEXTBOOK
from benchmarks.measure import build_cases, measure_peaks, time_interleaved
from benchmarks.report import comparison_table
from benchmarks.rows import build_row
from pvt_det.profiling import Case


@pytest.mark.parametrize("fails", [OURS, TEXTBOOK])
def test_out_of_gpu_memory_is_reported_in_the_row(fails):
    def step(name):
        calls.append(name)
        if name == fails and calls.count(name) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return 512.0

    calls, names = [], (OURS, TEXTBOOK)
    seconds = time_interleaved({name: partial(step, name) for name in names}, torch.device("cpu"), 3)
    assert (calls.count(fails), len(calls)) == (3, 7)
    calls[:] = [fails] * 2
    memory = measure_peaks(names, step)
    case = Case("m", "pyramid", "training", "fp32", 1, 32, 32)
    rows = {name: build_row(case, name, seconds, memory) for name in names}
    failed = rows.pop(fails)
    (other,) = rows.values()
    assert (failed.seconds, failed.images_per_s, failed.speedup, failed.memory_mib) == (None, None, None, None)
    assert (other.speedup, other.memory_ratio) == ((1, 1) if fails == TEXTBOOK else (None, None))
    assert (other.seconds > 0, other.memory_mib) == (True, 512)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(comparison_table([failed, other]))
    assert shown.get().count("out of memory") == 1


def test_cases_are_all_combinations():
    sizes = [(1, 32, 64), (2, 32, 64)]
    cases = build_cases(["a", "b"], sizes, ["pyramid"], ["inference", "training"], ["fp32"])
    assert len(cases) == len(set(cases)) == 8
    assert cases[0] == Case("a", "pyramid", "inference", "fp32", 1, 32, 64)
    assert cases[-1] == Case("b", "pyramid", "training", "fp32", 2, 32, 64)
