"""Join the process group that `torchrun` started, and provide the collectives that a run needs.

It does not need Detectron2.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pvt_det.errors import ConfigError, RankError
from pvt_det.utils.devices import require_device, require_single_process
from pvt_det.utils.rank_watch import watch_ranks
from pvt_det.utils.torchrun import (
    address_of_store,
    group_rank_and_size,
    local_rank,
    restarts,
    under_torchrun,
)

_TIMEOUT_VARIABLE, _TIMEOUT_SECONDS, _LONGEST_TIMEOUT = "PVT_DET_TIMEOUT", 30 * 60, 10**7
# NCCL ends the process without a message after its timeout. The watch of the ranks acts before.
_NCCL_EXTRA = timedelta(seconds=60)
# Numbers of the groups that this process joins, the same in all processes.
_groups = itertools.count()


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
    # torchrun keeps one store for all its attempts (torch 2.14). Without a prefix, a restarted process, or a second run
    # in the same processes, would find the addresses of dead processes and wait for them.
    of_torchrun = dist.TCPStore(*address, is_master=False, timeout=timeout)
    store = dist.PrefixStore(f"attempt_{restarts()}/group_{next(_groups)}", of_torchrun)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


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
