"""oneDNN products match PyTorch's linear layers, forward and backward, and do not appear in exported graphs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pvt_det.layers.cpu import onednn
from pvt_det.layers.cpu.onednn import _HAS_BF16 as HAS_BF16
from pvt_det.layers.cpu.onednn import HAS_ONEDNN, product, weight_gradient
from pvt_det.layers.linear import Linear, linear


@pytest.fixture(autouse=True)
def use_onednn_for_any_size(monkeypatch):
    monkeypatch.setattr(onednn, "_MIN_MACS", 0)


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 50),
    inner=st.integers(1, 70),
    columns=st.integers(1, 70),
    bias=st.booleans(),
)
def test_linear_and_its_gradients(batch, rows, inner, columns, bias):
    arguments = [torch.randn(batch, rows, inner), torch.randn(columns, inner), torch.randn(columns) if bias else None]
    arguments = [None if t is None else t.requires_grad_() for t in arguments]
    inputs = [t for t in arguments if t is not None]
    grad = torch.randn(batch, rows, columns)
    ours, theirs = linear(*arguments), F.linear(*arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for got, expected in zip(*(torch.autograd.grad(out, inputs, grad) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_frozen_weight_gets_no_gradient():
    layer, x = Linear(4, 5), torch.randn(3, 4, requires_grad=True)
    layer.requires_grad_(False)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 4))
    assert layer.weight.grad is layer.bias.grad is None


def test_linear_of_a_single_vector():
    layer, x = Linear(4, 5), torch.randn(4)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.expand(5, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_product_with_any_memory_layout(dtype):
    a, b = torch.randn(20, 30).to(dtype), torch.randn(30, 20).to(dtype)
    for left in (a[:, 3:13], b.t()[:, 3:13], a[::2, 3:13]):
        for right in (a[:, 3:13], b.t()[:, 3:13], b.t()[:, 3:13].contiguous()):
            tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(product(left, right), left @ right.mT, **tolerance)


@pytest.mark.parametrize(("columns", "inner"), [(3, 8), (8, 3)])
def test_weight_gradient(columns, inner):
    grad, x = torch.randn(11, columns), torch.randn(11, inner)
    torch.testing.assert_close(weight_gradient(grad, x), grad.mT @ x)


def test_traced_and_exported_graphs_do_not_contain_onednn():
    layer, x = Linear(64, 64).eval(), torch.randn(2, 64)
    traced = torch.jit.trace(layer, x)
    exported = torch.export.export(layer, (x,))
    for graph in (str(traced.inlined_graph), str(exported.graph)):
        assert "linear" in graph
        assert "mkldnn" not in graph


needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="needs PyTorch with oneDNN on x86-64")


def calls_of(function):
    with torch.profiler.profile() as profile, torch.no_grad():
        function()
    return {event.key for event in profile.key_averages()}


@needs_onednn
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_onednn_is_used_only_if_enabled_in_pytorch(autocast, enabled):
    layer, x = Linear(64, 64), torch.randn(2, 64)
    original = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = enabled
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            assert ("mkldnn::_linear_pointwise" in calls_of(lambda: layer(x))) == (
                enabled and (HAS_BF16 or not autocast)
            )
    finally:
        torch.backends.mkldnn.enabled = original


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_matches_pytorchs_linear_in_bf16(bias, dtype):
    ours, x = Linear(70, 50, bias=bias), torch.randn(3, 40, 70)
    theirs = torch.nn.Linear(70, 50, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    grad, results = torch.randn(3, 40, 50), []
    for layer in (ours, theirs):
        leaf = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(leaf)
        assert out.dtype == torch.bfloat16
        out.backward(grad.bfloat16())
        results.append([out, leaf.grad, *(p.grad for p in layer.parameters())])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=5e-2)


def test_other_autocast_dtypes_use_pytorch():
    with torch.autocast("cpu", dtype=torch.float16):
        assert "mkldnn::_linear_pointwise" not in calls_of(lambda: Linear(64, 64)(torch.randn(2, 64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_product_with_gelu(dtype, bias):
    a, b = torch.randn(2, 20, 30).to(dtype), torch.randn(40, 30).to(dtype)
    c = torch.randn(40).to(dtype) if bias else None
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(product(a, b, c, gelu=True), F.gelu(F.linear(a, b, c)), **tolerance)
