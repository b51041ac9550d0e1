"""The focal loss in parts against the formula on whole tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pvt_det.modeling import focal
from pvt_det.modeling.focal import dense_focal_loss

CLASSES = 4
SIZES = (50, 13, 1)


def scene(dtype=torch.float32):
    """Scores of three levels and two images, some of them huge; one anchor in four is positive, one is ignored."""
    logits = [(6 * torch.randn(2, rows, CLASSES)).to(dtype).requires_grad_() for rows in SIZES]
    with torch.no_grad():
        logits[0][0, :4, 0] = torch.tensor([100.0, -100.0, 30.0, -30.0])
    labels = torch.randint(-CLASSES, 2 * CLASSES, (2, sum(SIZES))).clamp(-1, CLASSES)
    return logits, labels


def formula(logits: list[Tensor], labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Equation 5 of the paper in double precision, with log p written so that it does not overflow."""
    x = torch.cat(logits, dim=1).double()
    target = torch.nn.functional.one_hot(labels.clamp(min=0), CLASSES + 1)[..., :-1].bool()
    x = torch.where(target, x, -x)  # p_t = sigmoid(x)
    weight = torch.where(target, alpha, 1 - alpha) if alpha >= 0 else torch.ones_like(x)
    loss = -weight * (-x).sigmoid() ** gamma * torch.nn.functional.logsigmoid(x)
    return loss[labels >= 0].sum()


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 1.5), (0.6, 0.0)])
@pytest.mark.parametrize("at_once", [7, 10**6])
def test_loss_and_gradient_are_the_formulas(monkeypatch, alpha, gamma, at_once):
    monkeypatch.setitem(focal._SCORES_AT_ONCE, "cpu", at_once * CLASSES)
    logits, labels = scene()
    loss, expected = (function(logits, labels, alpha, gamma) for function in (dense_focal_loss, formula))
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=0)
    found, wanted = (torch.autograd.grad(3 * value, logits) for value in (loss, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_half_precision_scores_are_worked_on_in_fp32():
    logits, labels = scene(torch.bfloat16)
    loss = dense_focal_loss(logits, labels, 0.25, 2.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, formula(logits, labels, 0.25, 2.0).float(), rtol=1e-6, atol=0)
    assert {gradient.dtype for gradient in torch.autograd.grad(loss, logits)} == {torch.bfloat16}


def test_the_loss_scale_keeps_small_gradients_in_fp16():
    logits = torch.linspace(-8, 0, 4 * 250).view(1, 250, CLASSES).half().requires_grad_()
    labels = torch.full((1, 250), CLASSES)
    (found,), (wanted,) = (
        torch.autograd.grad(2**15 * function([logits], labels, 0.25, 2.0), [logits])
        for function in (dense_focal_loss, formula)
    )
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=0)


def test_only_the_gradient_is_kept():
    logits, labels = scene()
    with torch.no_grad():
        assert not dense_focal_loss(logits, labels, 0.25, 2.0).requires_grad
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        loss = dense_focal_loss(logits, labels, 0.25, 2.0)
    assert sum(kept) == 0
    held = loss.grad_fn.gradients
    assert [gradient.shape for gradient in held] == [level.shape for level in logits]
