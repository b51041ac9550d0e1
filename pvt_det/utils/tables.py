"""Metrics as text tables for logs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Class names with their AP stand in so many columns side by side.
_COLUMNS = 3
_WIDTH = 120


def metric_table(values: Mapping[str, float]) -> str:
    """One row of all metrics but those of single classes, in percent."""
    whole = {name: value for name, value in values.items() if not name.startswith("AP-")}
    table = Table(*whole, box=box.SIMPLE_HEAD)
    table.add_row(*(_number(value) for value in whole.values()))
    return render(table)


def class_table(values: Mapping[str, float]) -> str:
    """AP of every class, in percent."""
    classes = [(name.removeprefix("AP-"), _number(value)) for name, value in values.items() if name.startswith("AP-")]
    table = Table(*(["class", "AP"] * min(_COLUMNS, len(classes))), box=box.SIMPLE_HEAD)
    rows = -(-len(classes) // _COLUMNS)
    for row in range(rows):
        table.add_row(*(text for pair in classes[row::rows] for text in pair))
    return render(table)


def render(table: Table, width: int = _WIDTH) -> str:
    """A table as plain text; texts that look like markup, such as a class "[a]", stay as they are."""
    console = Console(
        file=io.StringIO(), width=width, color_system=None, legacy_windows=False, markup=False, emoji=False
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def as_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Rows with the same keys as a table with lines for a terminal."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    return table


def as_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same keys as comma-separated values, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
