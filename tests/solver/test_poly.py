"""The polynomial schedule of semantic segmentation."""

from __future__ import annotations

import pytest
import torch

from pvt_det.config import get_config
from pvt_det.errors import ConfigError
from pvt_det.solver.build import build_lr_scheduler


def rates(**solver: object) -> list[float]:
    cfg = get_config()
    for key, value in ({"LR_SCHEDULER_NAME": "WarmupPolyLR", "MAX_ITER": 10, "WARMUP_ITERS": 0} | solver).items():
        cfg.SOLVER[key] = value
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule = build_lr_scheduler(cfg, optimizer)
    found = []
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_learning_rate_is_a_power_of_the_remaining_fraction():
    assert rates() == pytest.approx([0.2 * (1 - i / 10) ** 0.9 for i in range(10)])
    assert rates(POLY_LR_POWER=2.0) == pytest.approx([0.2 * (1 - i / 10) ** 2 for i in range(10)])


def test_warm_up_precedes_the_polynomial():
    found = rates(WARMUP_ITERS=4, WARMUP_FACTOR=0.1)
    assert found[0] == pytest.approx(0.02)
    assert found[:4] == sorted(found[:4])
    assert found[4:] == pytest.approx([0.2 * (1 - i / 10) ** 0.9 for i in range(4, 10)])


def test_unknown_schedule_lists_the_known_ones():
    with pytest.raises(ConfigError, match="WarmupPolyLR"):
        rates(LR_SCHEDULER_NAME="Poly")
