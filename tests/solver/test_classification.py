"""The published parameter groups and learning rates."""

from __future__ import annotations

import math

import pytest
import torch

from pvt_det.models import create_model
from pvt_det.solver.classification import build_optimizer, build_schedule


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b2_li"])
def test_weight_decay_groups(name):
    with torch.device("meta"):
        model = create_model(name)
    optimizer = build_optimizer(model, 1e-3, 0.05, (0.9, 0.999), 1e-8)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        excluded = key == "cls_token" or parameter.ndim == 1
        assert decay[id(parameter)] == (0.0 if excluded else 0.05), key
    assert len(decay) == len(list(model.parameters()))
    assert all(group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 for group in optimizer.param_groups)


def test_schedule_follows_the_published_curve():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = build_schedule(optimizer, epochs=300, updates_per_epoch=10, warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5)
    for update in range(0, 3000, 7):
        schedule.step_update(update)
        if update < 50:
            expected = 1e-6 + (1e-3 - 1e-6) * update / 50
        else:
            expected = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * update / 3000)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
