"""Attention and its pooling match plain implementations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from pvt_det.layers.attention import SpatialReductionAttention, adaptive_pool, attend
from pvt_det.layers.patch import to_map, to_tokens


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 40), side=st.sampled_from([1, 3, 7]))
def test_pooling_matches_adaptive_avg_pool2d(height, width, side):
    x = torch.randn(2, 5, height, width)
    got = adaptive_pool(to_tokens(x), (height, width), side)
    torch.testing.assert_close(to_map(got, (side, side)), F.adaptive_avg_pool2d(x, side), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pooling_is_accurate_in_half_precision(dtype):
    x = torch.full((1, 57 * 83, 4), 0.3, dtype=dtype)
    pooled = adaptive_pool(x, (57, 83), 7)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, torch.full_like(pooled, 0.3), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attend_matches_scaled_dot_product_attention(heads):
    query, key_value = torch.randn(2, 9, 8), torch.randn(2, 5, 16)
    keys, values = key_value.chunk(2, dim=-1)
    width = 8 // heads
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        weights = (query[..., part] @ keys[..., part].mT / width**0.5).softmax(-1)
        got = attend(query, key_value, heads)[..., part]
        torch.testing.assert_close(got, weights @ values[..., part], rtol=1e-4, atol=1e-5)


def test_fused_kernel_supports_the_layouts():
    # Fails with "No available kernel" if the fused kernel does not support the layouts.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = attend(torch.randn(2, 64, 128), torch.randn(2, 16, 256), 2)
    assert out.is_contiguous()


def test_spatial_reduction_attends_to_the_whole_map():
    layer = SpatialReductionAttention(8, 2, 4)
    x = torch.randn(1, 8 * 12, 8, requires_grad=True)
    layer(x, (8, 12))[0, 0].sum().backward()
    assert bool((x.grad.abs().sum(-1) > 0).all())
