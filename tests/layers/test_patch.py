"""Patch embeddings match the convolutions with the same weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pvt_det.layers.patch import OverlapPatchEmbed, PatchEmbed, PatchMerging, to_map, to_tokens


def test_tokens_and_maps_are_views_of_each_other():
    tokens = torch.randn(2, 6, 5)
    feature_map = to_map(tokens, (2, 3))
    assert feature_map.shape == (2, 5, 2, 3)
    assert feature_map.is_contiguous(memory_format=torch.channels_last)
    assert float(feature_map[1, 4, 1, 0]) == float(tokens[1, 3, 4])
    assert to_tokens(feature_map).data_ptr() == tokens.data_ptr()
    assert torch.equal(to_tokens(feature_map), tokens)


@settings(deadline=None, max_examples=30)
@given(ratio=st.sampled_from([1, 2, 4, 8]), extra=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_merge_matches_the_convolution(ratio, extra):
    layer = PatchMerging(3, 5, ratio)
    height, width = ratio + extra[0], ratio + extra[1]
    feature_map = torch.randn(2, 3, height, width)
    want = F.conv2d(feature_map, layer.weight, layer.bias, stride=ratio)
    got = layer.merge(to_tokens(feature_map), (height, width))
    torch.testing.assert_close(to_map(got, (want.shape[2], want.shape[3])), want, rtol=1e-5, atol=1e-5)


def test_weight_has_the_published_shape_and_its_matrix_is_a_view():
    layer = PatchMerging(3, 5, 4)
    assert layer.weight.shape == (5, 3, 4, 4)
    layer.load_state_dict({"weight": torch.randn(5, 3, 4, 4), "bias": torch.zeros(5)})
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.matrix().data_ptr() == layer.weight.data_ptr()


@pytest.mark.parametrize(("height", "width"), [(7, 9), (8, 8), (33, 5)])
def test_embeddings_match_convolution_and_layer_norm(height, width):
    x = torch.randn(2, 3, height, width)
    plain = PatchEmbed(3, 6, 4)
    tokens, size = plain(x)
    assert size == (height // 4, width // 4)
    want = plain.norm(F.conv2d(x, plain.proj.weight, plain.proj.bias, stride=4).flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens, want, rtol=1e-4, atol=1e-5)

    overlapping = OverlapPatchEmbed(3, 6, 7, 4)
    tokens, size = overlapping(x)
    assert size == (-(-height // 4), -(-width // 4))
    want = overlapping.norm(overlapping.proj(x).flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens, want, rtol=1e-4, atol=1e-5)
