"""Inference in chunks of samples or rows computes the same as training."""

from __future__ import annotations

import pytest
import torch

from pvt_det.layers.attention import LinearSpatialReductionAttention, SpatialReductionAttention
from pvt_det.layers.block import Block
from pvt_det.layers.cpu import chunked, set_fast_cpu
from pvt_det.layers.mlp import ConvMlp, Mlp


def make_block(kind: str) -> Block:
    attention = LinearSpatialReductionAttention(8, 2) if kind == "linear" else SpatialReductionAttention(8, 2, 2)
    mlp = Mlp(8, 4) if kind == "v1" else ConvMlp(8, 4, relu=kind == "linear")
    return Block(8, attention, mlp, drop_path=0.5).eval()


@pytest.mark.parametrize("kind", ["v1", "v2", "linear"])
@pytest.mark.parametrize("size", [(11, 6), (2, 40), (30, 2)])
@pytest.mark.parametrize("chunk_values", [1, 32 * 13, 32 * 30])
def test_chunking_does_not_change_results(monkeypatch, kind, size, chunk_values):
    block = make_block(kind)
    x = torch.randn(2, size[0] * size[1], 8)
    whole = block(x, size)
    assert whole.requires_grad
    monkeypatch.setattr(chunked, "CHUNK_VALUES", chunk_values)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    calls = []
    block.mlp.register_forward_hook(lambda *_: calls.append(1))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(block(x, size), whole.detach(), rtol=1e-5, atol=1e-5)
    assert len(calls) > 4  # more than one call per sample, so it was computed in chunks


@pytest.mark.parametrize("class_token", [0, 1])
@pytest.mark.parametrize(("tokens_at_once", "expected"), [(25, [1] * 5), (50, [2, 2, 1]), (200, [5]), (20, [1] * 5)])
def test_small_samples_share_a_chunk(monkeypatch, class_token, tokens_at_once, expected):
    block = Block(8, SpatialReductionAttention(8, 2, 1), Mlp(8, 4), drop_path=0.0).eval()
    x = torch.randn(5, 24 + class_token, 8)
    whole = block(x, (4, 6))
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 32 * tokens_at_once)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    samples = []
    block.attn.register_forward_hook(lambda module, inputs, output: samples.append(len(output)))
    with torch.no_grad():
        torch.testing.assert_close(block(x, (4, 6)), whole.detach(), rtol=1e-5, atol=1e-5)
    assert samples == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_is_added_in_the_last_product_of_the_mlp(dtype):
    block = Block(64, SpatialReductionAttention(64, 1, 8), Mlp(64, 8), drop_path=0.0).eval().to(dtype)
    x = torch.randn(1, 96 * 160, 64, dtype=dtype)
    with torch.no_grad():
        fast = block(x, (96, 160))
        with set_fast_cpu(False):
            plain = block(x, (96, 160))
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


def test_input_is_not_modified(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 1)
    block = make_block("v2")
    x = torch.randn(1, 24, 8)
    before = x.clone()
    with torch.no_grad():
        block(x, (4, 6))
    assert torch.equal(x, before)
