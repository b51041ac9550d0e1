"""Check that all processes of a run were started with the same config, data, code and output folder."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pvt_det.errors import ConfigError
from pvt_det.utils.text import listed

_ABSENT = "not set"
_SHOWN, _LONGEST = 10, 80
# Seconds that a new file may take to appear on another machine, and between two looks.
_APPEARS, _LOOK = 10.0, 0.2


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


def check_shared_folder(folder: Path, rank: int, gather: Callable[[Any], list[Any]]) -> None:
    """Check that all processes see the same output folder, before anything is trained. Call it in every process.

    Rank 0 writes a file with a random token, which the others read. The folder may have a different path on each
    machine.

    Args:
        folder: The existing output folder, as this process sees it.
        rank: Rank of this process.
        gather: Gathers an object from every process, in order of rank, such as `detectron2.utils.comm.all_gather`.

    Raises:
        ConfigError: If a process does not see the file, or rank 0 cannot write it. It is raised in every process, and
            names the ranks and hosts.
    """
    hosts = gather(socket.gethostname())
    if len(hosts) == 1:
        return
    token, fault = secrets.token_hex(16), ""
    written = folder / _token_file(token)
    try:
        if rank == 0:
            try:
                written.write_text(token)
            except OSError as error:
                fault = str(error.strerror)
        token, fault = gather((token, fault))[0]
        sees = gather((bool(fault) or _appears(folder / _token_file(token), token), str(folder)))
    finally:
        if rank == 0:
            written.unlink(missing_ok=True)
    first = f"rank 0 ({hosts[0]}: {sees[0][1]})"
    if fault:
        raise ConfigError(f"{first} cannot write to the output folder: {fault}. Choose another with --output.")
    blind = [f"rank {number} ({hosts[number]}: {path})" for number, (sees_it, path) in enumerate(sees) if not sees_it]
    if blind:
        raise ConfigError(
            f"The output folder is not shared: {listed(blind, _SHOWN)} cannot read what {first} writes to it. Every "
            "process resumes from its checkpoints. Choose a folder that all machines mount, such as one on a network "
            "file system, with --output."
        )


def _token_file(token: str) -> str:
    return f".token_{token}.tmp"


def _appears(file: Path, content: str) -> bool:
    """Return whether a file with some content can be read, and wait for it as long as a network file system needs."""
    deadline = time.monotonic() + _APPEARS
    while not (found := _holds(file, content)) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return found


def _holds(file: Path, content: str) -> bool:
    try:
        return file.read_text(errors="replace") == content
    except OSError:
        return False


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
