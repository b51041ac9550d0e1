"""What a benchmark says: one table, one JSON file, one picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.table import Table

from benchmarks.plan import Plan
from benchmarks.suites import Row


class Result(Protocol):
    """A row of any suite."""

    def as_dict(self) -> dict[str, object]:
        """The row as plain values."""


def as_table(rows: Sequence[Row]) -> Table:
    """Contestants' times and memory, with how `pvt_det` compares."""
    table = Table(caption="speed-up: times as fast as the contestant pvt_det is. Memory: of the step alone")
    for heading in ("model", "task", "mode", "dtype", "images", "contestant"):
        table.add_column(heading)
    for heading in ("median", "images/s", "speed-up", "peak memory", "ours / theirs"):
        table.add_column(heading, justify="right")
    for row in rows:
        case = row.case
        table.add_row(
            Path(case.model).stem,
            case.task,
            case.mode,
            case.dtype,
            f"{case.batch}x3x{case.height}x{case.width}",
            row.contestant,
            "out of memory" if row.seconds is None else f"{row.seconds * 1000:.1f} ms",
            "" if row.images_per_s is None else f"{row.images_per_s:.2f}",
            "" if row.speedup is None else f"{row.speedup:.2f}x",
            "" if row.memory_mib is None else f"{row.memory_mib:.0f} MiB",
            "" if row.memory_share is None else f"{row.memory_share:.2f}",
        )
    return table


def plan_table(plans: Sequence[Plan], memory_mib: float) -> Table:
    """Which batch fits."""
    table = Table(caption=f"What fits into {memory_mib / 1024:.1f} GiB: the whole process, AdamW's state included")
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


def write_json(path: Path, environment: dict[str, object], rows: Sequence[Result]) -> None:
    """Write `{"environment": {…}, "rows": [{…}, …]}`."""
    path.write_text(json.dumps({"environment": environment, "rows": [row.as_dict() for row in rows]}, indent=1))


def plot_growth(rows: Sequence[Row], path: Path, caption: str) -> None:
    """Draw time and memory against the image side, a line a model, and save it as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for model in dict.fromkeys(row.case.model for row in rows):
        own = [row for row in rows if row.case.model == model]
        sides = [row.case.height for row in own]
        # Where a GPU's memory was not enough, a line ends.
        time_axes.plot(sides, [row.seconds or math.nan for row in own], marker="o", label=model)
        memory_axes.plot(sides, [(row.memory_mib or math.nan) / 1024 for row in own], marker="o", label=model)
    for axes, label in ((time_axes, "seconds a step"), (memory_axes, "peak memory of a step, GiB")):
        axes.set(xlabel="image side, pixels", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    case = rows[0].case
    figure.suptitle(f"{case.task}, {case.mode}, {case.dtype}, batch {case.batch}; {caption}", fontsize=9)
    figure.savefig(path, dpi=120)
