"""Parameter groups, schedules and gradient clipping compared with simple reference code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pvt_det.config import get_config
from pvt_det.errors import ConfigError
from pvt_det.solver.build import build_gradient_clipper, build_lr_scheduler, build_optimizer, total_gradient_norm


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 4))
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


@pytest.fixture
def cfg():
    cfg = get_config()
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    return cfg


def settings(optimizer, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_published_recipe_decays_all_parameters_equally(cfg):
    cfg.SOLVER.WEIGHT_DECAY_NORM = cfg.SOLVER.WEIGHT_DECAY
    model = Model()
    optimizer = build_optimizer(cfg, model)
    trained = ("table", "conv.weight", "conv.bias", "norm.weight", "norm.bias")
    assert settings(optimizer, model) == dict.fromkeys(trained, (0.1, 0.05))
    assert len(optimizer.param_groups) == 1


def test_norms_and_biases_use_their_own_keys(cfg):
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.01
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    model = Model()
    assert settings(build_optimizer(cfg, model), model) == {
        "table": (0.1, 0.05),
        "conv.weight": (0.1, 0.05),
        "conv.bias": (0.2, 0.01),
        "norm.weight": (0.1, 0.0),
        "norm.bias": (0.2, 0.01),
    }


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimizer_by_name(cfg, name, kind):
    cfg.SOLVER.OPTIMIZER = name
    assert type(build_optimizer(cfg, Model())) is kind


def test_model_without_trainable_parameters_is_refused(cfg):
    with pytest.raises(ConfigError, match="Freeze fewer"):
        build_optimizer(cfg, nn.Linear(2, 2).requires_grad_(False))


def test_warm_up_and_steps(cfg):
    solver = cfg.SOLVER
    solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS, solver.WARMUP_FACTOR = 20, (10, 15), 4, 0.5
    optimizer = build_optimizer(cfg, Model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"] / 0.1)
        optimizer.step()
        scheduler.step()
    warm_up = [0.5 + 0.5 * i / 4 for i in range(4)]
    assert rates == pytest.approx(warm_up + [1.0] * 6 + [0.1] * 5 + [0.01] * 5)


@pytest.mark.parametrize("change", [{"LR_SCHEDULER_NAME": "Warmup"}, {"STEPS": (9, 3)}, {"WARMUP_METHOD": "slow"}])
def test_invalid_schedules_are_refused(cfg, change):
    cfg.SOLVER.MAX_ITER = 10
    for key, value in change.items():
        cfg.SOLVER[key] = value
    with pytest.raises(ConfigError, match=r"SOLVER\.LR_SCHEDULER_NAME"):
        build_lr_scheduler(cfg, build_optimizer(cfg, Model()))


def gradients():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator), 5 * torch.randn(7, generator=generator)]


def clipped(cfg, grads):
    parameters = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    clipper = build_gradient_clipper(cfg)
    clipper(parameters, total_gradient_norm(parameters, cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE))
    return [parameter.grad for parameter in parameters]


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
@pytest.mark.parametrize("limit", [1.0, 1e6])
def test_clipping(cfg, norm_type, limit):
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_VALUE, clip.NORM_TYPE = True, limit, norm_type
    grads = gradients()

    def scaled(grad, norm):
        return grad * min(1.0, limit / norm.item())

    whole = torch.cat([grad.flatten() for grad in grads]).norm(norm_type)
    expected = {
        "full_model": [scaled(grad, whole) for grad in grads],
        "norm": [scaled(grad, grad.norm(norm_type)) for grad in grads],
        "value": [grad.clamp(-limit, limit) for grad in grads],
    }
    for clip.CLIP_TYPE, result in expected.items():
        torch.testing.assert_close(clipped(cfg, grads), result)


def test_clipping_is_off_by_default_and_refuses_invalid_settings(cfg):
    assert build_gradient_clipper(cfg) is None
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "fullmodel"
    with pytest.raises(ConfigError, match="full_model, norm, value"):
        build_gradient_clipper(cfg)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.0
    with pytest.raises(ConfigError, match="expected a positive number"):
        build_gradient_clipper(cfg)
