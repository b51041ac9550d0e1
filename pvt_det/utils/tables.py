"""Format metrics as tables: plain text for logs and terminals, Markdown, and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from pvt_det.utils.console import Console
from pvt_det.utils.text import printable

# Number of side-by-side pairs of class name and AP.
_COLUMNS = 3
_WIDTH = 120
# What formats or links text in Markdown, or starts HTML. Underscores inside words and brackets alone do neither.
_MARKDOWN = re.compile(r"[\\`*<|~&]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|:(?=//)")
# Cells that spreadsheets take for formulas, except our own numbers, such as "+0.50 [+0.10, +0.90]".
_FORMULA = re.compile(r"[=+\-@]")
_NUMBER = re.compile(r"-|[+-]?[\d.]+( \[[+-][\d.]+, [+-][\d.]+\]| \([a-z]+, ±[\d.]+\))?")


def metric_table(values: Mapping[str, float]) -> str:
    """Return a plain-text table with one row of all metrics except those of single classes.

    Args:
        values: Metrics by name, in percent. Names of per-class metrics begin with "AP-".
    """
    whole = {name: value for name, value in values.items() if not name.startswith("AP-")}
    table = Table(*whole, box=box.SIMPLE_HEAD)
    table.add_row(*(_number(value) for value in whole.values()))
    return render(table)


def class_table(values: Mapping[str, float]) -> str:
    """Return a plain-text table of the AP of each class.

    Args:
        values: Metrics by name, in percent. Names of per-class metrics begin with "AP-"; others are skipped.
    """
    classes = [(name.removeprefix("AP-"), _number(value)) for name, value in values.items() if name.startswith("AP-")]
    table = Table(*(["class", "AP"] * min(_COLUMNS, len(classes))), box=box.SIMPLE_HEAD)
    rows = -(-len(classes) // _COLUMNS)
    for row in range(rows):
        table.add_row(*(text for pair in classes[row::rows] for text in pair))
    return render(table)


def render(table: Table, width: int = _WIDTH) -> str:
    """Render a table as plain text. Strings that look like markup, such as a class "[a]", are unchanged.

    Args:
        table: The table.
        width: Maximum width in characters.
    """
    console = Console(
        file=io.StringIO(), width=width, color_system=None, legacy_windows=False, markup=False, emoji=False
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines() if line.strip())


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def as_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Build a table for a terminal.

    Args:
        rows: The rows, at least one, all with the same keys. Each maps a column's name to the cell.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    return table


def as_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows as a Markdown table.

    Args:
        rows: The rows, at least one, all with the same keys. Each maps a column's name to the cell.
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(map(markdown_text, line)) + " |" for line in lines)


def markdown_text(text: object) -> str:
    """Escape text from outside, such as a class name, so that Markdown shows it unchanged, in a line or a table cell.

    Args:
        text: Any text or number. Line breaks become spaces.
    """
    return _MARKDOWN.sub(r"\\\g<0>", _one_line(str(text)))


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows as comma-separated values with a header.

    Args:
        rows: The rows, at least one, all with the same keys. Each maps a column's name to the cell.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_text(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue().rstrip("\n")


def csv_text(text: str) -> str:
    """Put a quote before a cell that a spreadsheet would run as a formula.

    Args:
        text: Content of the cell. Line breaks become spaces. Numbers, even with an interval or a verdict, are kept.
    """
    text = _one_line(text)
    is_formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def _one_line(text: str) -> str:
    return printable(" ".join(text.splitlines()).strip())
