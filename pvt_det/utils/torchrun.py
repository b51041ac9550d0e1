"""Joining the process group that `torchrun` (or a like launcher) describes in the environment."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist

_NEEDED = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


def under_torchrun() -> bool:
    """Whether this process was started as one of a group."""
    return os.environ.keys() >= _NEEDED


def restarts() -> int:
    """How often `torchrun --max-restarts` has started this group anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join_torchrun_group(backend: str, timeout: timedelta) -> None:
    """Make this process a member of its group.

    Args:
        backend: "nccl" or "gloo".
        timeout: How long to wait for the others, now and in every collective operation.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, init_method="env://", rank=rank, world_size=world_size, timeout=timeout)
        return
    # torchrun keeps one store for all its attempts (torch 2.14): without a prefix, a restarted process would find the
    # addresses of processes that have died, and wait for them.
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"attempt_{restarts()}", dist.TCPStore(address, port, is_master=False, timeout=timeout))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
