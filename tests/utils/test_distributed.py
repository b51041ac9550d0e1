"""Process ranks alone and under torchrun. Tests in tests/classification run two processes."""

from __future__ import annotations

import pytest
import torch

from pvt_det.errors import ConfigError
from pvt_det.utils.distributed import start_process
from pvt_det.utils.torchrun import local_rank, local_world_size, under_torchrun

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_missing_gpu_is_a_config_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda is not available: PyTorch can use "), start_process("cuda"):
        pass


def test_each_process_needs_a_gpu(monkeypatch):
    for name in _TORCHRUN:
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (local_rank(), local_world_size()) == (2, 2)
    with (
        pytest.raises(ConfigError, match=r"Process 2 of this machine has no GPU: PyTorch sees 2\. Start torchrun"),
        start_process("auto"),
    ):
        pass


@pytest.mark.parametrize("missing", _TORCHRUN)
def test_single_process(monkeypatch, missing):
    for name in _TORCHRUN:
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv(missing)
    assert not under_torchrun()
    assert (local_rank(), local_world_size()) == (0, 1)
    with start_process("cpu") as process, process.main_first():
        assert (process.rank, process.world_size, process.is_main_process) == (0, 1, True)
        assert process.gather("a") == ["a"]
        assert process.sum(torch.ones(2)).tolist() == [1, 1]
        assert (process.any(True), process.any(False)) == (True, False)
