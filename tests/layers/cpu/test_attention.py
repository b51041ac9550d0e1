"""Chunked attention matches plain attention, and saves less for the backward pass."""

from __future__ import annotations

import pytest
import torch

from pvt_det.layers.attention import attend
from pvt_det.layers.cpu import attention, chunked


def plain_attention(query, key_value, heads):
    q = query.unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK_THRESHOLDS", dict.fromkeys((torch.float32, torch.float64), 1))
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 5 * 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.usefixtures("small_chunks")
def test_chunked_attention_and_its_gradients():
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 7, 8), (2, 5, 16))]
    torch.testing.assert_close(attend(*arguments, 2), plain_attention(*arguments, 2))
    assert torch.autograd.gradcheck(lambda *tokens: attend(*tokens, 2), arguments)


@pytest.mark.usefixtures("small_chunks")
def test_chunked_attention_saves_only_its_inputs():
    query, key_value = torch.randn(1, 300, 8, requires_grad=True), torch.randn(1, 50, 16, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attend(query, key_value, 2).sum().backward()
    assert sum(sizes) == query.numel() + key_value.numel()
    assert query.grad.shape == query.shape


@pytest.mark.parametrize("threshold", [1, 1 << 30])
def test_bf16_error_is_within_its_precision(monkeypatch, threshold):
    monkeypatch.setitem(attention.CHUNK_THRESHOLDS, torch.bfloat16, threshold)
    exact = [torch.randn(shape).bfloat16().float().requires_grad_() for shape in ((1, 900, 64), (1, 40, 128))]
    rounded = [t.detach().bfloat16().requires_grad_() for t in exact]
    expected, got = plain_attention(*exact, 1), attend(*rounded, 1)
    grad = torch.randn_like(expected)
    pairs = zip(
        (expected, *torch.autograd.grad(expected, exact, grad)),
        (got, *torch.autograd.grad(got, rounded, grad.bfloat16())),
        strict=True,
    )
    for reference, actual in pairs:
        assert actual.dtype == torch.bfloat16
        assert float((actual.detach().float() - reference.detach()).norm() / reference.detach().norm()) < 0.01
