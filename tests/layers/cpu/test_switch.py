"""`set_fast_cpu` enables and disables the fast CPU implementations without changing outputs or gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pvt_det.layers import attention, block, linear, mlp
from pvt_det.layers.cpu import attention as cpu_attention
from pvt_det.layers.cpu import chunked, onednn, set_fast_cpu, use_fast_cpu
from pvt_det.models import create_model, list_models
from pvt_det.models.trunk import Trunk

FAST_FUNCTIONS = {"fast_block": block, "fast_mlp": mlp, "fast_attention": attention, "fast_linear": linear}


@pytest.fixture(autouse=True)
def use_fast_cpu_for_any_size(monkeypatch):
    """Use the fast implementations for tensors of any size."""
    monkeypatch.setattr(chunked, "CHUNK_VALUES", 1 << 12)
    monkeypatch.setattr(onednn, "_MIN_MACS", 0)
    monkeypatch.setattr(cpu_attention, "CHUNK_THRESHOLDS", dict.fromkeys((torch.float32, torch.bfloat16), 64))


@pytest.fixture
def calls(monkeypatch):
    """Return the names of the fast functions that were called."""
    called = set()
    for name, module in FAST_FUNCTIONS.items():
        monkeypatch.setattr(module, name, record_calls(called, name, getattr(module, name)))
    return called


def record_calls(called: set[str], name: str, fast: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def recorded(*arguments):
        called.add(name)
        return fast(*arguments)

    return recorded


def random_trunk(name: str) -> Trunk:
    """Build a trunk with weights large enough for every layer to affect the output."""
    with torch.device("meta"):
        trunk = create_model(name, num_classes=0)
    trunk.to_empty(device="cpu")
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.03)
    return trunk.eval()


def maps_and_gradients(trunk: Trunk, image: Tensor) -> list[Tensor]:
    trunk.zero_grad()
    with torch.no_grad():
        inferred = trunk.forward_pyramid(image)
    trained = trunk.forward_pyramid(image)
    sum(m.float().square().mean() for m in trained).backward()
    return [*inferred, *(m.detach() for m in trained), *(p.grad for p in trunk.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", list_models())
def test_fast_and_reference_maps_and_gradients_agree(name, calls):
    trunk, image = random_trunk(name), torch.randn(1, 3, 64, 64)
    fast = maps_and_gradients(trunk, image)
    assert calls >= {"fast_block", "fast_attention"}
    with set_fast_cpu(False):
        reference = maps_and_gradients(trunk, image)
    assert len(fast) == len(reference)
    # Gradients of keys nearly cancel where attention is nearly uniform.
    rounding = 1e-5 * max(float(expected.norm()) for expected in reference)
    for got, expected in zip(fast, reference, strict=True):
        assert float((got - expected).norm()) <= 1e-3 * float(expected.norm()) + rounding


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b2_li"])
def test_fast_and_reference_maps_agree_in_bf16(name):
    trunk, image = random_trunk(name), torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        fast = trunk.forward_pyramid(image)
        with set_fast_cpu(False):
            reference = trunk.forward_pyramid(image)
    for got, expected in zip(fast, reference, strict=True):
        assert got.dtype == expected.dtype
        assert float((got - expected).norm()) < 0.05 * float(expected.norm())


@pytest.mark.parametrize("autocast", [False, True])
def test_no_fast_function_is_called_if_disabled(calls, autocast):
    trunk, image = create_model("pvt_tiny", num_classes=0).eval(), torch.randn(1, 3, 64, 64)
    with set_fast_cpu(False), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with torch.profiler.profile() as profile:
            maps_and_gradients(trunk, image)
        assert calls == set()
        assert "mkldnn::_linear_pointwise" not in {event.key for event in profile.key_averages()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        maps_and_gradients(trunk, image)
    assert calls >= {"fast_block", "fast_mlp", "fast_attention"}


def test_set_fast_cpu_as_function_and_context_manager():
    tensor = torch.zeros(1)
    assert use_fast_cpu(tensor)
    with set_fast_cpu(False):
        assert not use_fast_cpu(tensor)
        with set_fast_cpu(True):
            assert use_fast_cpu(tensor)
        assert not use_fast_cpu(tensor)
    with pytest.raises(KeyError), set_fast_cpu(False):
        raise KeyError
    assert use_fast_cpu(tensor)
    set_fast_cpu(False)
    assert not use_fast_cpu(tensor)
    set_fast_cpu(True)
    assert use_fast_cpu(tensor)
    assert not use_fast_cpu(tensor.to("meta"))


@pytest.mark.parametrize(("value", "expected"), [("0", "False"), ("1", "True")])
def test_environment_variable_sets_the_default(value, expected):
    code = "import torch; from pvt_det.layers.cpu import use_fast_cpu; print(use_fast_cpu(torch.zeros(1)))"
    environment = {**os.environ, "PVT_DET_FAST_CPU": value}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert out.strip() == expected
