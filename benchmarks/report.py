"""The table of a comparison, and the plot of the growth suite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.rows import Row
from pvt_det.cli.benchmark import format_time


def comparison_table(rows: Sequence[Row]) -> Table:
    """Build the table of time and memory of all implementations.

    Args:
        rows: Results of all cases and implementations.
    """
    table = Table(
        caption="speed-up: pvt_det over the implementation; peak memory: of the step alone; memory ratio: pvt_det's "
        "peak divided by the implementation's"
    )
    for heading in ("model", "task", "mode", "dtype", "images", "implementation"):
        table.add_column(heading)
    for heading in ("median", "images/s", "speed-up", "peak memory", "memory ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        case = row.case
        table.add_row(
            Path(case.model).stem,
            case.task,
            case.mode,
            case.dtype,
            f"{case.batch}x3x{case.height}x{case.width}",
            row.implementation,
            format_time(row.seconds),
            "" if row.images_per_s is None else f"{row.images_per_s:.2f}",
            "" if row.speedup is None else f"{row.speedup:.2f}x",
            "" if row.memory_mib is None else f"{row.memory_mib:.0f} MiB",
            "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
        )
    return table


def plot_growth(rows: Sequence[Row], path: Path, caption: str) -> None:
    """Plot time and memory over the image side, with one line per model, and save the plot.

    Args:
        rows: Results of the growth suite.
        path: PNG file to write.
        caption: Hardware and software that the results were measured on.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for model in dict.fromkeys(row.case.model for row in rows):
        model_rows = [row for row in rows if row.case.model == model]
        sides = [row.case.height for row in model_rows]
        # The line ends where the GPU ran out of memory.
        time_axes.plot(sides, [row.seconds or math.nan for row in model_rows], marker="o", label=model)
        memory_axes.plot(sides, [(row.memory_mib or math.nan) / 1024 for row in model_rows], marker="o", label=model)
    for axes, label in ((time_axes, "seconds per step"), (memory_axes, "peak memory of a step, GiB")):
        axes.set(xlabel="image side, pixels", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    case = rows[0].case
    figure.suptitle(f"{case.task}, {case.mode}, {case.dtype}, batch {case.batch}; {caption}", fontsize=9)
    figure.savefig(path, dpi=120)
