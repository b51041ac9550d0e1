"""The result of a drill, and measurement of a process's resources."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

# The kernel counts memory in pages.
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SHOWN = 20


@dataclass
class Outcome:
    """The result of a drill.

    Attributes:
        drill: Name of the drill.
        tried: Number of attempts.
        failures: One line per failure.
        facts: Measured values by name.
    """

    drill: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"{self.drill}: {self.tried} tried, {len(self.failures)} failed"
        more = [f"… and {len(self.failures) - _SHOWN} more"] if len(self.failures) > _SHOWN else []
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        return "\n  ".join([head, *lines, *(f"FAILED {line}" for line in self.failures[:_SHOWN]), *more])


def resident_bytes(pid: int | None = None) -> int:
    """Return the resident memory of a process in bytes, or 0 if it has ended.

    Args:
        pid: Id of the process. By default this process.
    """
    try:
        return int(Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def open_files() -> int:
    """Return the number of open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def children(pid: int | None = None) -> list[int]:
    """Return the ids of the living child processes of a process.

    Args:
        pid: Id of the process. By default this process.
    """
    parent = pid or os.getpid()
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The process name is in parentheses and may contain spaces and parentheses.
            state, ppid, *_ = stat.read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(ppid) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)
