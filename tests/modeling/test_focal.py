"""The chunked focal loss matches the formula on whole tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pvt_det.modeling import focal
from pvt_det.modeling.focal import dense_focal_loss

CLASSES = 4
SIZES = (50, 13, 1)


def make_inputs(dtype=torch.float32):
    """Create logits of three levels and two images, including huge ones, with positive and ignored anchors."""
    logits = [(6 * torch.randn(2, rows, CLASSES)).to(dtype).requires_grad_() for rows in SIZES]
    with torch.no_grad():
        logits[0][0, :4, 0] = torch.tensor([100.0, -100.0, 30.0, -30.0])
    labels = torch.randint(-CLASSES, 2 * CLASSES, (2, sum(SIZES))).clamp(-1, CLASSES)
    return logits, labels


def formula(logits: list[Tensor], labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Compute equation 5 of the paper in double precision, with log p in a form that does not overflow."""
    x = torch.cat(logits, dim=1).double()
    target = torch.nn.functional.one_hot(labels.clamp(min=0), CLASSES + 1)[..., :-1].bool()
    x = torch.where(target, x, -x)  # p_t = sigmoid(x)
    weight = torch.where(target, alpha, 1 - alpha) if alpha >= 0 else torch.ones_like(x)
    loss = -weight * (-x).sigmoid() ** gamma * torch.nn.functional.logsigmoid(x)
    return loss[labels >= 0].sum()


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 1.5), (0.6, 0.0)])
@pytest.mark.parametrize("chunk", [7, 10**6])
def test_loss_and_gradient_match_the_formula(monkeypatch, alpha, gamma, chunk):
    monkeypatch.setitem(focal._CHUNK_SCORES, "cpu", chunk * CLASSES)
    logits, labels = make_inputs()
    loss, expected = (function(logits, labels, alpha, gamma) for function in (dense_focal_loss, formula))
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=0)
    gradients = (torch.autograd.grad(3 * value, logits) for value in (loss, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_bf16_logits_are_processed_in_fp32():
    logits, labels = make_inputs(torch.bfloat16)
    loss = dense_focal_loss(logits, labels, 0.25, 2.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, formula(logits, labels, 0.25, 2.0).float(), rtol=1e-6, atol=0)
    assert {gradient.dtype for gradient in torch.autograd.grad(loss, logits)} == {torch.bfloat16}


def test_loss_scale_preserves_small_gradients_in_fp16():
    logits = torch.linspace(-8, 0, 4 * 250).view(1, 250, CLASSES).half().requires_grad_()
    labels = torch.full((1, 250), CLASSES)
    (got,), (expected,) = (
        torch.autograd.grad(2**15 * function([logits], labels, 0.25, 2.0), [logits])
        for function in (dense_focal_loss, formula)
    )
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=0)


def test_only_the_gradient_is_saved():
    logits, labels = make_inputs()
    with torch.no_grad():
        assert not dense_focal_loss(logits, labels, 0.25, 2.0).requires_grad
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        loss = dense_focal_loss(logits, labels, 0.25, 2.0)
    assert sum(saved) == 0
    assert [gradient.shape for gradient in loss.grad_fn.gradients] == [level.shape for level in logits]
