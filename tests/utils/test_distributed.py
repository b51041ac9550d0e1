"""Process ranks alone and under torchrun. Tests in tests/classification run two processes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from pvt_det.errors import ConfigError
from pvt_det.utils.distributed import agree_on_prefix, start_process
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


@pytest.fixture
def connect():
    """Connect to a store as another process does."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return lambda: dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=10))


def agreed(connect, ranks, size, seconds=10.0):
    def join(rank):
        return agree_on_prefix(connect(), rank, size, timedelta(seconds=seconds))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(join, ranks))


def test_processes_agree_on_a_new_prefix_each_time(connect):
    """The words of earlier processes, living or dead, stay in the store."""
    first, second = agreed(connect, range(4), 4), agreed(connect, [3, 1, 0, 2], 4)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_process_that_died_while_it_joined_is_replaced(connect):
    connect().set("asked/1", "the word of a dead process")
    connect().set("asked/2", "another")
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(agreed, connect, [0, 2], 3)
        time.sleep(0.3)
        assert not late.done()
        assert {*agreed(connect, [1], 3)} == {*late.result()}


def test_processes_that_never_join_are_counted(connect):
    with pytest.raises(dist.DistStoreError, match="2 processes did not join"):
        agreed(connect, [0], 3, seconds=0.2)
