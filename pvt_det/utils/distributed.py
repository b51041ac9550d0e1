"""Join the process group that `torchrun` started, and provide the collectives that a run needs.

It does not need Detectron2.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pvt_det.errors import ConfigError, RankError
from pvt_det.utils.devices import require_device, require_single_process
from pvt_det.utils.rank_watch import watch_ranks
from pvt_det.utils.text import counted
from pvt_det.utils.torchrun import (
    address_of_store,
    group_rank_and_size,
    local_rank,
    under_torchrun,
)

_TIMEOUT_VARIABLE, _TIMEOUT_SECONDS, _LONGEST_TIMEOUT = "PVT_DET_TIMEOUT", 30 * 60, 10**7
# NCCL ends the process without a message after its timeout. The watch of the ranks acts before.
_NCCL_EXTRA = timedelta(seconds=60)
# Seconds between two looks for processes that join.
_POLL = 0.05


def collective_timeout() -> timedelta:
    """Return the maximum time to wait for the other processes, on joining and in every collective operation.

    It is 30 minutes, or the number of seconds in the environment variable `PVT_DET_TIMEOUT`.

    Raises:
        ConfigError: The variable is not a positive number.
    """
    text = os.environ.get(_TIMEOUT_VARIABLE, str(_TIMEOUT_SECONDS))
    try:
        seconds = float(text)
        if not 0 < seconds <= _LONGEST_TIMEOUT:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{_TIMEOUT_VARIABLE} is {text!r}. Expected a positive number of seconds. Correct or unset it."
        ) from None
    return timedelta(seconds=seconds)


@contextmanager
def process_group(backend: str, init_method: str = "", rank: int = 0, world_size: int = 1) -> Iterator[None]:
    """Join a process group, watch its processes, and leave it on exit.

    Args:
        backend: "nccl" or "gloo".
        init_method: Initialization URL, `tcp://host:port`. "" joins the group that `torchrun` describes in the
            environment; then the other arguments are not used.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        ConfigError: The environment variable `PVT_DET_TIMEOUT` is not a positive number.
        RankError: The processes did not find each other in time.
    """
    limit = collective_timeout()
    timeout = limit + _NCCL_EXTRA if backend == "nccl" else limit
    try:
        try:
            if init_method:
                dist.init_process_group(backend, init_method, timeout, rank=rank, world_size=world_size)
            else:
                _join_torchrun_group(backend, timeout)
        except dist.DistError as error:
            raise RankError(
                f"The processes of this run have not found each other (waited at most {limit.total_seconds():.0f} "
                f"seconds): {str(error).splitlines()[0]}. Start all of them, with the same address and number of "
                "machines."
            ) from error
        with watch_ranks(limit):
            yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join_torchrun_group(backend: str, timeout: timedelta) -> None:
    rank, world_size = group_rank_and_size()
    address = address_of_store()
    if address is None:
        dist.init_process_group(backend, init_method="env://", rank=rank, world_size=world_size, timeout=timeout)
        return
    of_torchrun = dist.TCPStore(*address, is_master=False, timeout=timeout)
    store = dist.PrefixStore(agree_on_prefix(of_torchrun, rank, world_size, timeout), of_torchrun)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def agree_on_prefix(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Agree on a new prefix for the keys of a process group in a store that outlives its processes.

    `torchrun` keeps one store for all attempts (torch 2.14), in which a restarted process would find the addresses of
    dead ones. Its number of restarts would not do as a prefix, because it differs between hosts: only those on which a
    process failed count a restart. So every process asks with a word of its own, which only a living rank 0 can answer.

    Args:
        store: The store, used by no other thread.
        rank: Rank of this process.
        world_size: Number of processes, all of which call this function.
        timeout: Maximum time to wait for the others.

    Returns:
        The prefix, the same in all processes and never used before.

    Raises:
        DistStoreError: Some processes did not call this function in time.
    """
    word = secrets.token_hex(16)
    if rank > 0:
        store.set(f"asked/{rank}", word)
        prefix = store.get(f"answer/{word}").decode()
        store.set(f"heard/{prefix}/{rank}", "")
        return prefix
    waiting, deadline = set(range(1, world_size)), time.monotonic() + timeout.total_seconds()
    while waiting:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"{counted(len(waiting), 'process', 'processes')} did not join")
        for other in sorted(waiting):
            # The word may be of a dead process, until its successor asks.
            if store.check([f"asked/{other}"]):
                store.set(f"answer/{store.get(f'asked/{other}').decode()}", word)
            if store.check([f"heard/{word}/{other}"]):
                waiting.remove(other)
        time.sleep(_POLL)
    return word


def distribute(model: nn.Module, device: torch.device, *, broadcast_buffers: bool) -> DistributedDataParallel:
    """Wrap a model so that its gradients are averaged over all processes, in the same order in every iteration.

    `DistributedDataParallel` groups the gradients anew after its first backward pass, by the order in which they came.
    With three or more processes, another group is another order of additions, so that the first iteration of a resumed
    run would differ in the last bits from the same iteration of an uninterrupted one. Therefore, the first backward
    pass is done here, without the model's own computation.

    Args:
        model: The model, on its device. Its gradients are None afterwards.
        device: Device of the model.
        broadcast_buffers: Whether the buffers of rank 0 are sent to all processes before each forward pass.

    Returns:
        The wrapped model. All processes must call this function at the same time.
    """
    device_ids = [device] if device.type == "cuda" else None
    started = _Started(model)
    wrapped = DistributedDataParallel(started, device_ids=device_ids, broadcast_buffers=broadcast_buffers)
    wrapped(torch.zeros((), device=device)).backward()
    model.zero_grad(set_to_none=True)
    started.is_first = False
    return wrapped


class _Started(nn.Module):
    """A model whose first forward pass only touches its parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.is_first = True

    def forward(self, *inputs: Any) -> Any:
        if self.is_first:
            trained = (parameter for parameter in self.model.parameters() if parameter.requires_grad)
            return sum(((0 * parameter).sum() for parameter in trained), *inputs)
        return self.model(*inputs)


@dataclass(frozen=True)
class Process:
    """This process and its rank in the group. The collectives do nothing in a run of one process.

    Attributes:
        device: The device that the process computes on.
        rank: Index of the process in the group, from 0.
        world_size: Number of processes in the group.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files and logs."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place.

        Args:
            values: The tensor, with the same shape in every process.

        Returns:
            The same tensor, which holds the sums.
        """
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in at least one process.

        Args:
            flag: The flag of this process.
        """
        return bool(self.sum(torch.tensor([int(flag)], device=self.device)).item()) if self.world_size > 1 else flag

    def gather(self, value: object) -> list:
        """Gather an object from every process.

        Args:
            value: The object of this process. It is pickled and should be small.

        Returns:
            The objects of all processes, in order of rank.
        """
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every process has reached this call."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run a block in the main process first, then in all other processes."""
        if not self.is_main_process:
            self.barrier()
        yield
        if self.is_main_process:
            self.barrier()


@contextmanager
def start_process(device: str) -> Iterator[Process]:
    """Join the process group if `torchrun` started this process, and leave it on exit.

    The backend is NCCL on GPUs and gloo on CPUs.

    Args:
        device: "auto" (a CUDA GPU if one is available, otherwise the CPU), "cuda", "mps" or "cpu".

    Yields:
        This process.

    Raises:
        ConfigError: The device is not available, there are fewer GPUs than processes, or several processes would share
            an Apple GPU.
    """
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    require_device(torch.device(kind), f"--device {kind}")
    if not under_torchrun():
        yield Process(torch.device(kind))
        return
    require_single_process(torch.device(kind), group_rank_and_size()[1])
    if kind == "cuda":
        if local_rank() >= (gpus := torch.cuda.device_count()):
            raise ConfigError(
                f"Process {local_rank()} of this machine has no GPU: PyTorch sees {gpus}. Start torchrun with "
                f"--nproc-per-node {gpus}."
            )
        torch.cuda.set_device(local_rank())
    place = torch.device(kind, local_rank()) if kind == "cuda" else torch.device(kind)
    with process_group("nccl" if kind == "cuda" else "gloo"):
        yield Process(place, dist.get_rank(), dist.get_world_size())
