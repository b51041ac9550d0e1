"""Process ranks alone and under torchrun. Tests in tests/classification run two processes."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pvt_det.errors import ConfigError
from pvt_det.utils.distributed import agree_on_prefix, distribute, start_process
from pvt_det.utils.torchrun import local_rank, local_world_size, under_torchrun
from tests.classification.test_distributed import _free_ports

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


class Tangled(nn.Module):
    """Layers that are used in another order than that of their parameters."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(300, 300) for _ in range(8))

    def forward(self, x):
        for index in (3, 0, 7, 1, 5, 2, 6, 4):
            x = torch.tanh(self.layers[index](x))
        return x.sum()


def compare_gradients(rank, port, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=60), rank=rank, world_size=3)
    torch.manual_seed(0)
    model, images = Tangled(), torch.randn(5, 300, generator=torch.Generator().manual_seed(rank))
    before = [parameter.clone() for parameter in model.parameters()]
    wrapped, found = distribute(model, torch.device("cpu"), broadcast_buffers=True), []
    unchanged = all(map(torch.equal, before, model.parameters()))
    for _ in range(2):
        model.zero_grad()
        wrapped(images).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    if rank == 0 and unchanged and all(grad.abs().sum() > 0 for grad in found[0]):
        file.write_text(str(sum(not torch.equal(*grads) for grads in zip(*found, strict=True))))
    dist.destroy_process_group()


def test_gradients_are_added_in_the_same_order_in_the_first_and_in_later_iterations(tmp_path):
    """With three processes. The sum of two numbers does not depend on their order."""
    context, port = multiprocessing.get_context("fork"), _free_ports(1)[0]
    processes = [
        context.Process(target=compare_gradients, args=(rank, port, tmp_path / "different")) for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert (tmp_path / "different").read_text() == "0"


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
