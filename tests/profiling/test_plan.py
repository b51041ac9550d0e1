"""Prediction of the largest batch that fits in memory."""

from __future__ import annotations

import pytest
import torch

from pvt_det import profiling
from pvt_det.errors import ConfigError
from pvt_det.profiling import Case


def test_plan_of_a_detector(repo_root, monkeypatch):
    # A new process needs seconds for its imports.
    monkeypatch.setattr(profiling, "run_in_own_process", lambda function, *arguments: function(*arguments))
    case = Case(str(repo_root / "configs/retinanet_pvt_tiny.yaml"), "detector", "training", "fp32", 1, 64, 64)
    found = profiling.plan_batch(case, 1e6, torch.device("cpu"))
    assert found["fixed_mib"] > 100
    assert found["batch"] > 100
    monkeypatch.setattr(profiling, "run_in_own_process", raise_out_of_memory)
    with pytest.raises(
        ConfigError, match=r"not have enough memory to measure .* three images of 64x64. Add --device cpu"
    ):
        profiling.plan_batch(case, 1e6, torch.device("cpu"))


def raise_out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(("memory", "batch"), [(1000, 0), (1249, 0), (1250, 1), (2000, 4)])
def test_largest_batch_that_fits(monkeypatch, memory, batch):
    # 1000 MiB plus 250 MiB per image.
    monkeypatch.setattr(profiling, "run_in_own_process", lambda function, case, *_: 1000.0 + 250 * case.batch)
    case = Case("m", "pyramid", "training", "fp32", 7, 32, 32)
    found = profiling.plan_batch(case, memory, torch.device("cpu"))
    assert (found["fixed_mib"], found["image_mib"], found["batch"]) == (1000, 250, batch)
    assert found["total_mib"] == 1000 + 250 * batch
