"""Format metrics as tables: plain text for logs and terminals, Markdown, and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pvt_det.utils.console import Console
from pvt_det.utils.text import printable

# Number of side-by-side pairs of class name and AP.
_COLUMNS = 3
# Number of metrics in a row. With the time of the log line, a row fits into 80 columns.
_METRICS = 6
_WIDTH = 120
# Space between columns: the padding and the divider.
_GAP = 2
# Width of a column that still reads well, in characters.
_WIDEST = 40
# Longest words in columns that are not abbreviated, in characters. Tried in this order.
_LONGEST_WORDS = (40, 28, 22, 17)
# A word that is never broken. The interval in "+0.50 [+0.10, +0.90]" is one.
_WORD = re.compile(r"\[[+-][\d.]+, [+-][\d.]+\]|\S+")
# What formats or links text in Markdown, or starts HTML. Underscores inside words and brackets alone do neither.
_MARKDOWN = re.compile(r"[\\`*<|~&]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|:(?=//)")
# Cells that spreadsheets take for formulas, except our own numbers, such as "+0.50 [+0.10, +0.90]".
_FORMULA = re.compile(r"[=+\-@]")
_NUMBER = re.compile(r"-|[+-]?[\d.]+( \[[+-][\d.]+, [+-][\d.]+\]| \([a-z]+, ±[\d.]+\))?")


def metric_table(values: Mapping[str, float]) -> str:
    """Return a plain-text table of all metrics except those of single classes, six in a row.

    Args:
        values: Metrics by name, in percent. Names of per-class metrics begin with "AP-".
    """
    whole = [(name, _number(value)) for name, value in values.items() if not name.startswith("AP-")]
    tables = []
    for start in range(0, len(whole), _METRICS):
        names, numbers = zip(*whole[start : start + _METRICS], strict=True)
        table = Table(box=box.SIMPLE_HEAD)
        for name in names:
            table.add_column(name, justify="right")
        table.add_row(*numbers)
        tables.append(table)
    return render(Group(*tables))


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


def render(table: RenderableType, width: int = _WIDTH) -> str:
    """Render a table as plain text without empty lines. Strings that look like markup, such as "[a]", are unchanged.

    Args:
        table: The table, or several.
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


def as_columns(rows: Sequence[Mapping[str, str]], width: int) -> Group:
    """Build tables for a terminal with one column per row of the data, which stay readable at any width.

    Words are never broken. If not all columns fit side by side, there are several tables, one below the other. Words
    that are too long for a column are abbreviated, with an explanation below the tables.

    Args:
        rows: The rows, at least one, all with the same keys. The first cell of each is the heading of its column.
        width: Width of the terminal in characters.
    """
    layouts = [_columns_layout(rows, width, longest) for longest in _LONGEST_WORDS]
    tables, short = min(layouts, key=lambda layout: len(layout[0]))
    shown: list[RenderableType] = [part for table in tables for part in (table, Text())]
    return Group(*shown, *(Text(f"{mark}: {word}", overflow="fold") for word, mark in short.items()))


def without_empty(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return rows without the columns in which all cells are "-" or empty.

    Args:
        rows: The rows, all with the same keys.
    """
    used = [name for name in rows[0] if any(row[name] not in ("", "-") for row in rows)] if rows else []
    return [{name: row[name] for name in used} for row in rows]


def _columns_layout(rows: Sequence[Mapping[str, str]], width: int, longest: int) -> tuple[list[Table], dict[str, str]]:
    """Return the tables, and the short forms of words of more than `longest` characters."""
    heading, *labels = rows[0]
    cells = [{name: _WORD.findall(_one_line(text)) for name, text in row.items()} for row in rows]
    short = _abbreviated([word for row in cells for words in row.values() for word in words], longest)
    cells = [{name: [short.get(word, word) for word in words] for name, words in row.items()} for row in cells]
    first = max(map(cell_len, rows[0]))
    narrowest = max(cell_len(word) for row in cells for words in row.values() for word in words)
    widest = max(cell_len(" ".join(words)) for row in cells for words in row.values())
    fitting = max(1, (width - first) // (narrowest + _GAP))
    in_each = -(-len(rows) // -(-len(rows) // fitting))
    column = max(narrowest, min(widest, _WIDEST, (width - first) // in_each - _GAP))
    tables = []
    for start in range(0, len(rows), in_each):
        part = cells[start : start + in_each]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(Text(heading), no_wrap=True)
        for row in part:
            table.add_column(_wrapped(row[heading], column), min_width=column, max_width=column)
        for label in labels:
            table.add_row(Text(label), *(_wrapped(row[label], column) for row in part))
        tables.append(table)
    return tables, short


def _wrapped(words: Sequence[str], width: int) -> Text:
    """Join words to lines of at most `width` characters, none of which is broken."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return Text("\n".join(lines), no_wrap=True)


def _abbreviated(words: Iterable[str], longest: int) -> dict[str, str]:
    """Return a short form, different for each, of the words that are too long: "retinanet_…_seed1"."""
    short: dict[str, str] = {}
    for word in dict.fromkeys(words):
        if cell_len(word) > longest:
            half = (longest - 1) // 2
            mark = f"{_start(word, half)}…{_start(word[::-1], half)[::-1]}"
            if mark in short.values():
                mark = f"{_start(word, longest - 4)}…{len(short) + 1}"
            short[word] = mark
    return short


def _start(word: str, width: int) -> str:
    """Return the first characters of a word that take at most `width` columns of the terminal."""
    return next(word[:end] for end in range(len(word), -1, -1) if cell_len(word[:end]) <= width)


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
