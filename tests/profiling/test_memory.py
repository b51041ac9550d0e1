"""Peak memory is measured even if the call frees all of its memory before it returns."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from pvt_det.profiling import peak_memory, resident_memory, run_in_own_process

CPU = torch.device("cpu")


def allocate(mebibytes: int) -> None:
    np.ones(mebibytes * 2**17)


def peak_of(mebibytes: int) -> tuple[float, float]:
    return peak_memory(lambda: allocate(mebibytes), CPU), resident_memory(peak=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak")
def test_peak_memory_of_a_call():
    peak, whole = run_in_own_process(peak_of, 200)
    assert 190 < peak < 230
    assert whole > peak
