"""The few collective operations that classification needs; without effect in a run of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pvt_det.errors import ConfigError
from pvt_det.utils.torchrun import join_torchrun_group, under_torchrun


@dataclass(frozen=True)
class Process:
    """This process's place in the run.

    Attributes:
        device: Where it computes.
        rank: Its number, from 0.
        world_size: Number of processes.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in some process."""
        return bool(self.sum(torch.tensor([int(flag)], device=self.device)).item()) if self.world_size > 1 else flag

    def gather(self, value: object) -> list:
        """`value` of every process, by rank; small objects only."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the main process enters alone, and the others once it has left."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


@contextmanager
def start_process(device: str) -> Iterator[Process]:
    """Join the processes that `torchrun` started, if it did, with NCCL on GPUs and gloo on CPUs.

    Args:
        device: "auto", "cuda" or "cpu".

    Raises:
        ConfigError: There is no GPU, or not one for each process.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda': PyTorch sees no GPU here. Give --device cpu, or mend the driver.")
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if not under_torchrun():
        yield Process(torch.device(kind))
        return
    local = int(os.environ["LOCAL_RANK"])
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no GPU: {torch.cuda.device_count()} are seen. Give torchrun "
                f"--nproc-per-node {torch.cuda.device_count()}."
            )
        torch.cuda.set_device(local)
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    join_torchrun_group("nccl" if kind == "cuda" else "gloo", dist.default_pg_timeout)
    try:
        yield Process(place, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
