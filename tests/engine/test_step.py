"""One iteration compared with its formula: accumulation, clipping, moving average and NaN handling."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pvt_det.config import get_config
from pvt_det.engine.step import TrainStep
from pvt_det.errors import ConfigError, NumericError


class Regression(nn.Module):
    """Mean squared error of a linear layer. A batch is (inputs, targets)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, batch):
        inputs, targets = batch
        return {
            "loss_fit": (self.linear(inputs) - targets).square().mean(),
            "loss_size": self.linear.weight.square().sum(),
        }


def build(model, **options):
    return TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1), device=torch.device("cpu"), **options)


def batches(count, size=3):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 4, generator=generator), torch.randn(size, 1, generator=generator)) for _ in range(count)
    ]


def test_synchronized_norms_on_cpus_need_a_single_process(monkeypatch):
    cfg = get_config()
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_BOX_HEAD.NORM = "cpu", "SyncBN"
    norm = nn.SyncBatchNorm(3)
    TrainStep.from_config(cfg, norm)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"MODEL\.ROI_BOX_HEAD\.NORM = SyncBN: .* or set the value to naiveSyncBN_N"):
        TrainStep.from_config(cfg, norm)


def test_accumulated_batches_equal_one_large_batch():
    model = Regression()
    other = copy.deepcopy(model)
    parts = batches(4)
    report = build(model, accumulate=4)(iter(parts))
    whole = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    whole_report = build(other)(iter([whole]))
    torch.testing.assert_close(model.state_dict(), other.state_dict())
    assert report.losses == pytest.approx(whole_report.losses)
    assert report.gradient_norm == pytest.approx(whole_report.gradient_norm)


def test_step_equals_sgd_formula():
    model = Regression()
    weight = model.linear.weight.detach().clone().requires_grad_()
    bias = model.linear.bias.detach().clone().requires_grad_()
    (batch,) = batches(1)
    loss = (batch[0] @ weight.T + bias - batch[1]).square().mean() + weight.square().sum()
    loss.backward()
    report = build(model)(iter([batch]))
    torch.testing.assert_close(model.linear.weight.detach(), weight.detach() - 0.1 * weight.grad)
    assert sum(report.losses.values()) == pytest.approx(loss.item())
    assert report.gradient_norm == pytest.approx(torch.cat([weight.grad.flatten(), bias.grad]).norm().item())


def test_nonfinite_gradient_of_finite_loss_is_skipped():
    class BrokenGradient(Regression):
        def forward(self, batch):
            # The gradient of sqrt at 0 is infinite.
            return {"loss": (self.linear.weight.sum() * 0).sqrt()}

    model = BrokenGradient()
    before = model.linear.weight.detach().clone()
    step = build(model)
    report = step(iter(batches(1)))
    assert report.losses == {"loss": 0.0}
    assert step.skipped == 1
    assert torch.equal(model.linear.weight, before)


def test_overflow_lowers_loss_scale_and_is_not_counted():
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return torch.where(gradient > 8192, torch.inf, gradient)

    class Steep(Regression):
        def forward(self, batch):
            # Simulates fp16, overflowing if the scale is above 8192.
            return {"loss": Overflow.apply(self.linear.weight.sum())}

    step = build(Steep(), precision="fp16", max_nonfinite=0)
    for _ in range(3):
        step(iter(batches(1)))
    assert step.state_dict()["scaler"]["scale"] == 65536 / 8
    assert (step.skipped, step.state_dict()["skipped_in_row"]) == (3, 0)
    before = step.model.linear.weight.detach().clone()
    step(iter(batches(1)))
    torch.testing.assert_close(step.model.linear.weight.detach(), before - 0.1)


def test_gradients_are_unscaled_before_clipping():
    norms = []

    def clipper(parameters, norm):
        norms.append((norm.item(), torch.cat([p.grad.flatten() for p in parameters]).norm().item()))

    model = Regression()
    build(copy.deepcopy(model), clipper=clipper)(iter(batches(1)))
    scaled = build(copy.deepcopy(model), clipper=clipper, precision="fp16")
    while len(norms) < 2:  # the first scales overflow
        scaled(iter(batches(1)))
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)
    assert norms[0][0] == pytest.approx(norms[0][1])


def test_nonfinite_weights_are_named():
    model = Regression()
    step = build(model)
    step.check_finite()
    with torch.no_grad():
        model.linear.bias.fill_(float("nan"))
    with pytest.raises(NumericError, match=r"linear\.bias"):
        step.check_finite()


def _numbers(step: TrainStep) -> dict:
    return {name: value for name, value in step.state_dict().items() if name != "optimizer_name"}


def test_state_is_restored_with_and_without_average():
    model = Regression()
    step = build(model, ema_decay=0.9)
    for batch in batches(3):
        step(iter([batch]))
    state = copy.deepcopy(step.state_dict())
    resumed = build(Regression(), ema_decay=0.9)
    resumed.load_state_dict(state)
    for train_step in (step, resumed):
        train_step(iter(batches(1)))
    torch.testing.assert_close(_numbers(resumed), _numbers(step), rtol=0, atol=0)
    plain = build(Regression())
    plain.load_state_dict(state)
    torch.testing.assert_close(plain.model.state_dict(), state["training_model"], rtol=0, atol=0)
