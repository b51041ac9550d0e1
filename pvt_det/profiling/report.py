"""Tables and JSON files of measurements."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from pvt_det.profiling.latency import Latency
from pvt_det.profiling.plan import Plan


class Result(Protocol):
    """A measurement of any kind."""

    def as_dict(self) -> dict[str, object]:
        """Return the values under their names."""


def print_environment(environment: Mapping[str, object]) -> None:
    """Print the environment in one paragraph."""
    text = " · ".join(f"{key} {value}" for key, value in environment.items())
    _console().print(text, style="dim", highlight=False)


def print_table(table: Table) -> None:
    """Print a table."""
    _console().print(table)


def latency_table(rows: Sequence[Latency]) -> Table:
    """Show latency and memory, one row per case."""
    table = Table(caption="Peak memory: of one step, without the model and the images")
    for heading in ("model", "weights", "mode", "dtype", "images", "execution"):
        table.add_column(heading)
    for heading in ("median", "min", "images/s", "peak memory"):
        table.add_column(heading, justify="right")
    for row in rows:
        case = row.case
        table.add_row(
            case.model,
            row.weights,
            case.mode,
            case.dtype,
            f"{case.batch}x3x{case.height}x{case.width}",
            row.execution,
            format_time(row.median_s),
            "" if row.min_s is None else format_time(row.min_s),
            "" if row.images_per_s is None else f"{row.images_per_s:.2f}",
            "" if row.peak_mib is None else f"{row.peak_mib:.0f} MiB",
        )
    return table


def plan_table(plans: Sequence[Plan], memory_mib: float) -> Table:
    """Show the largest batch of each case that fits into a memory in MiB."""
    table = Table(caption=f"Fits into {memory_mib / 1024:.1f} GiB: the whole process with the state of AdamW")
    for heading in ("model", "mode", "dtype", "image", "checkpointing"):
        table.add_column(heading)
    for heading in ("fixed", "each image", "largest batch", "takes"):
        table.add_column(heading, justify="right")
    for plan in plans:
        case = plan.case
        table.add_row(
            case.model,
            case.mode,
            case.dtype,
            f"{case.height}x{case.width}",
            "all stages" if case.checkpointed else "no",
            f"{plan.fixed_mib:.0f} MiB",
            f"{plan.image_mib:.0f} MiB",
            str(case.batch) if case.batch else "not even 1",
            f"{plan.total_mib:.0f} MiB" if case.batch else "",
        )
    return table


def format_time(seconds: float | None) -> str:
    """Write a step's time in milliseconds, or that it ran out of memory where there is none."""
    return "out of memory" if seconds is None else f"{seconds * 1000:.1f} ms"


def write_json(path: Path, environment: Mapping[str, object], rows: Sequence[Result]) -> None:
    """Write `{"environment": {…}, "rows": [{…}, …]}`."""
    path.write_text(json.dumps({"environment": dict(environment), "rows": [row.as_dict() for row in rows]}, indent=1))


def _console() -> Console:
    # The tables have many columns, and a file or a pipe has no width.
    return Console(width=None if sys.stdout.isatty() else 160)
