"""The chunked MLP matches the plain MLP, and saves less for the backward pass."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_det.layers.cpu import chunked
from pvt_det.layers.cpu.mlp import ChunkedMlp
from pvt_det.layers.mlp import Mlp


def plain_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def make_arguments() -> list[Tensor]:
    shapes = ((13, 4), (6, 4), (6,), (4, 6), (4,))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_chunked_mlp_and_its_gradients(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 6 * 5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    arguments = make_arguments()
    torch.testing.assert_close(ChunkedMlp.apply(*arguments), plain_mlp(*arguments))
    assert torch.autograd.gradcheck(ChunkedMlp.apply, arguments)


def test_number_of_threads_can_change_before_the_backward_pass(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 6 * 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    arguments = make_arguments()
    out = ChunkedMlp.apply(*arguments)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for got, expected in zip(
        torch.autograd.grad(out.sum(), arguments),
        torch.autograd.grad(plain_mlp(*arguments).sum(), arguments),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_chunks_under_autocast_are_as_accurate_as_the_plain_mlp(monkeypatch):
    exact = Mlp(64, 4)
    layers, x, grad = [copy.deepcopy(exact) for _ in range(2)], torch.randn(2, 3000, 64), torch.randn(2, 3000, 64)
    exact(x, (3000, 1)).backward(grad)
    errors, sizes = [], []
    for layer, chunk_values in zip(layers, (1 << 30, 256 * 100), strict=True):
        monkeypatch.setattr(chunked, "CHUNK_VALUES", chunk_values)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sizes.append(saved_size(layer, x))
            out = layer(x, (3000, 1))
        out.backward(grad.bfloat16())
        pairs = zip(layer.parameters(), exact.parameters(), strict=True)
        errors.append([(ours.grad - theirs.grad).norm() / theirs.grad.norm() for ours, theirs in pairs])
    assert sizes[1] < 0.7 * sizes[0]
    for whole, in_chunks in zip(*errors, strict=True):
        assert in_chunks < 1.2 * whole + 1e-3


def saved_size(layer: Mlp, x: Tensor) -> int:
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        layer(x, (x.shape[1], 1))
    return sum(sizes)


def test_large_maps_are_processed_in_chunks_and_save_less(monkeypatch):
    layer, x = Mlp(8, 8), torch.randn(2, 500, 8)
    whole, whole_size = layer(x, (500, 1)), saved_size(layer, x)
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 1 << 10)
    torch.testing.assert_close(layer(x, (500, 1)), whole)
    assert saved_size(layer, x) < 0.6 * whole_size


def test_traced_graphs_do_not_contain_the_chunked_mlp(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 1)
    layer = Mlp(8, 2).requires_grad_(False)
    traced = torch.jit.trace(lambda x: layer(x, (50, 1)), torch.randn(2, 50, 8))
    assert "linear" in str(traced.graph)
    assert "ChunkedMlp" not in str(traced.graph)


def test_autocast_and_replaced_layers_use_pytorch(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 1)
    layer, x = Mlp(8, 2), torch.randn(2, 50, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x, (50, 1)).dtype == torch.bfloat16
    calls = []
    layer.fc1 = torch.nn.Sequential(layer.fc1)
    layer.fc1.register_forward_hook(lambda *_: calls.append(1))
    layer(x, (50, 1))
    assert calls == [1]


def test_inference_matches_the_plain_mlp_and_calls_hooks():
    layer, x, seen = Mlp(8, 4), torch.randn(2, 50, 8), []
    with torch.no_grad():
        out = layer(x, (50, 1))
        torch.testing.assert_close(out, plain_mlp(x, *layer.parameters()), rtol=1e-4, atol=1e-6)
        layer.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))
        torch.testing.assert_close(layer(x, (50, 1)), out, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen, [F.linear(x, layer.fc1.weight, layer.fc1.bias)], rtol=1e-4, atol=1e-6)
