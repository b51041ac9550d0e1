"""Check that all processes of a run were started with the same config, data and code."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pvt_det.errors import ConfigError

_ABSENT = "not set"
_SHOWN, _LONGEST = 10, 80


def check_agreement(facts: Mapping[str, Any], gather: Callable[[Any], list[Any]]) -> None:
    """Compare facts between all processes. Call it in every process.

    Args:
        facts: Plain values by name, such as the values of config keys.
        gather: Gathers an object from every process, in order of rank, such as `detectron2.utils.comm.all_gather`.

    Raises:
        ConfigError: If the processes have different values. It is raised in every process, and names the facts, their
            values and the ranks.
    """
    everywhere = gather((socket.gethostname(), dict(facts)))
    hosts, values = [host for host, _ in everywhere], [found for _, found in everywhere]
    names = dict.fromkeys(name for found in values for name in found)
    differing = [name for name in names if any(found.get(name) != values[0].get(name) for found in values)]
    if differing:
        shown = "; ".join(
            f"{name} is {_by_rank([found.get(name, _ABSENT) for found in values], hosts)}"
            for name in differing[:_SHOWN]
        )
        rest = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise ConfigError(
            f"The processes of this run differ: {shown}{rest}. All processes need the same config, data and code. "
            "Start them again with the same values."
        )


def shortened(value: Any) -> str:
    """Format a value for a message, cut to 80 characters.

    Args:
        value: A plain value, such as that of a config key.
    """
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _by_rank(values: Sequence[Any], hosts: Sequence[str]) -> str:
    """Describe which ranks have which value: "1 on rank 0 (a), 2 on ranks 1, 2 (b)"."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(repr(value), []).append(rank)
    return ", ".join(
        f"{shortened(values[having[0]])} on rank{'s' if len(having) > 1 else ''} {', '.join(map(str, having))} "
        f"({', '.join(dict.fromkeys(hosts[rank] for rank in having))})"
        for having in ranks.values()
    )
