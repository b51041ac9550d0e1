"""Tests of the check for devices, and of what Apple GPUs (device mps) need."""

from __future__ import annotations

import pytest
import torch

from pvt_det.cli.benchmark import build_parser, device
from pvt_det.cli.machine import gpu
from pvt_det.config import load_config, validate_config
from pvt_det.engine.defaults import select_device
from pvt_det.engine.launch import launch
from pvt_det.errors import ConfigError
from pvt_det.profiling import reports_peak_memory
from pvt_det.utils.devices import available_devices, require_device, require_single_process
from pvt_det.utils.distributed import start_process
from pvt_det.utils.environment import environment
from pvt_det.utils.precision import autocast, has_fast_bf16
from pvt_det.utils.rng import random_state, set_random_state

MPS = torch.device("mps")


@pytest.fixture
def apple(monkeypatch):
    """A machine with an Apple GPU and no CUDA GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two CUDA GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_a_missing_device_is_an_error_that_names_those_present(gpus):
    assert available_devices() == ["cuda:0", "cuda:1", "cpu"]
    for name in ("cpu", "cuda", "cuda:1", "xpu"):
        require_device(torch.device(name), name)
    for name in ("mps", "cuda:2"):
        message = f"--device {name} is not available: PyTorch can use cuda:0, cuda:1, cpu on this machine"
        with pytest.raises(ConfigError, match=message):
            require_device(torch.device(name), f"--device {name}")


@pytest.mark.parametrize("check", [select_device, lambda device: start_process(device.type).__enter__()])
def test_training_on_a_missing_apple_gpu_is_an_error(gpus, check):
    with pytest.raises(ConfigError, match="mps is not available: PyTorch can use cuda:0, cuda:1, cpu"):
        check(MPS)


def test_config_accepts_an_apple_gpu(repo_root):
    cfg = load_config(repo_root / "configs/retinanet_pvt_tiny.yaml", ["MODEL.DEVICE", "mps"])
    validate_config(cfg)
    assert cfg.MODEL.DEVICE == "mps"
    with pytest.raises(ConfigError, match="cpu, cuda, mps, or a GPU by its index"):
        load_config(repo_root / "configs/retinanet_pvt_tiny.yaml", ["MODEL.DEVICE", "apple"])


def test_commands_accept_an_apple_gpu(apple):
    assert available_devices() == ["mps", "cpu"]
    select_device(MPS)
    assert device("mps") == MPS
    assert "mps" in build_parser().format_help()
    with start_process("mps") as process:
        assert process.device == MPS
    with start_process("auto") as process:
        assert process.device == torch.device("cpu")
    assert (gpu().state, gpu().found) == ("ok", "Apple GPU, used with --device mps or MODEL.DEVICE mps")


def test_several_processes_cannot_share_an_apple_gpu(apple):
    require_single_process(MPS, 1)
    require_single_process(torch.device("cpu"), 2)
    with pytest.raises(ConfigError, match="2 processes cannot share device mps"):
        launch(print, 2, device="mps")


def test_precision_and_environment_of_an_apple_gpu(monkeypatch):
    # PyTorch 2.9 asks for the version of macOS.
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        context = autocast(MPS, precision)
        assert (context.device, context.fast_dtype) == ("mps", dtype)
    assert has_fast_bf16(MPS)
    assert torch.amp.GradScaler("mps", enabled=False).scale(torch.ones(1)) == 1
    assert str(environment(MPS)["device"]).startswith("Apple GPU of ")
    assert not reports_peak_memory(MPS)


def test_random_state_of_an_apple_gpu_is_saved(apple, monkeypatch):
    states = [torch.tensor([1, 2], dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    state = random_state()
    set_random_state(state)
    assert len(states) == 2
    assert torch.equal(states[1], states[0])
    del state["mps"]  # saved by a version without support for Apple GPUs
    set_random_state(state)
    assert len(states) == 2
