"""Attention and its pooling against plain forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from pvt_det.layers import attention
from pvt_det.layers.attention import SpatialReductionAttention, adaptive_pool, attend
from pvt_det.layers.cpu import chunked as bands
from pvt_det.layers.patch import to_map, to_tokens


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40), side=st.sampled_from([1, 3, 7]))
def test_pool_is_adaptive_average_pooling(height, width, side):
    x = torch.randn(2, 5, height, width)
    got = adaptive_pool(to_tokens(x), (height, width), side)
    torch.testing.assert_close(to_map(got, (side, side)), F.adaptive_avg_pool2d(x, side), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pool_in_half_precision_adds_no_error_of_its_own(dtype):
    x = torch.full((1, 57 * 83, 4), 0.3, dtype=dtype)
    pooled = adaptive_pool(x, (57, 83), 7)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, torch.full_like(pooled, 0.3), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attend_is_softmax_of_scaled_products(heads):
    query, key_value = torch.randn(2, 9, 8), torch.randn(2, 5, 16)
    keys, values = key_value.chunk(2, dim=-1)
    width = 8 // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weights = (query[..., part] @ keys[..., part].mT / width**0.5).softmax(-1)
        got = attend(query, key_value, heads)[..., part]
        torch.testing.assert_close(got, weights @ values[..., part], rtol=1e-4, atol=1e-5)


def test_the_fused_kernel_takes_these_layouts():
    # Fails with "No available kernel" when the layouts do not suit the fused one.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = attend(torch.randn(2, 64, 128), torch.randn(2, 16, 256), 2)
    assert out.is_contiguous()


def plainly(query, key_value, heads):
    q = query.unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = key_value.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.fixture
def in_bands(monkeypatch):
    monkeypatch.setattr(attention, "MANY_SCORES", dict.fromkeys((torch.float32, torch.float64), 1))
    monkeypatch.setattr(bands, "BAND_VALUES", 5 * 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.usefixtures("in_bands")
def test_bands_of_attention_and_their_gradients():
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 7, 8), (2, 5, 16))]
    torch.testing.assert_close(attend(*arguments, 2), plainly(*arguments, 2))
    assert torch.autograd.gradcheck(lambda *tokens: attend(*tokens, 2), arguments)


@pytest.mark.usefixtures("in_bands")
def test_bands_keep_nothing_but_their_input():
    query, key_value = torch.randn(1, 300, 8, requires_grad=True), torch.randn(1, 50, 16, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attend(query, key_value, 2).sum().backward()
    assert sum(sizes) == query.numel() + key_value.numel()
    assert query.grad.shape == query.shape


@pytest.mark.parametrize("many", [1, 1 << 30])
def test_bf16_is_as_exact_as_its_numbers(monkeypatch, many):
    monkeypatch.setitem(attention.MANY_SCORES, torch.bfloat16, many)
    exact = [torch.randn(shape).bfloat16().float().requires_grad_() for shape in ((1, 900, 64), (1, 40, 128))]
    rounded = [t.detach().bfloat16().requires_grad_() for t in exact]
    expected, got = plainly(*exact, 1), attend(*rounded, 1)
    grad = torch.randn_like(expected)
    pairs = zip(
        (expected, *torch.autograd.grad(expected, exact, grad)),
        (got, *torch.autograd.grad(got, rounded, grad.bfloat16())),
        strict=True,
    )
    for wanted, found in pairs:
        assert found.dtype == torch.bfloat16
        assert float((found.detach().float() - wanted.detach()).norm() / wanted.detach().norm()) < 0.01


def test_spatial_reduction_sees_the_whole_map():
    layer = SpatialReductionAttention(8, 2, 4)
    x = torch.randn(1, 8 * 12, 8, requires_grad=True)
    layer(x, (8, 12))[0, 0].sum().backward()
    assert bool((x.grad.abs().sum(-1) > 0).all())
