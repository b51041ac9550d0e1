"""What `torchrun` says about this process in its environment variables, which no other module reads."""

from __future__ import annotations

import os

_VARIABLES = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


def under_torchrun() -> bool:
    """Return whether `torchrun`, or a launcher with the same variables, started this process."""
    return os.environ.keys() >= _VARIABLES


def local_rank() -> int:
    """Return the index of this process on its machine, from 0; 0 for a single process."""
    return int(os.environ["LOCAL_RANK"]) if under_torchrun() else 0


def local_world_size() -> int:
    """Return the number of processes on this machine; 1 for a single process."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else 1


def group_rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, on all machines; (0, 1) for a single process."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if under_torchrun() else (0, 1)


def address_of_store() -> tuple[str, int] | None:
    """Return the address and port of the store that `torchrun` opened, or None if the main process opens it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def restarts() -> int:
    """Return how many times `torchrun --max-restarts` has restarted this group."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
