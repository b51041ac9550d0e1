"""Print the result of an inspection in the terminal."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pvt_det.inspection import terminal
from pvt_det.inspection.inspect import Inspection
from pvt_det.inspection.result import InspectionResult
from pvt_det.inspection.semantic import terminal as semantic_terminal


def show_found(console: Console, result: InspectionResult) -> None:
    """Print what was found in the data.

    Args:
        console: Console to print to.
        result: The result, whose files need not be written yet.
    """
    for title, found in result.parts:
        if isinstance(found, Inspection):
            terminal.show(console, title, found, result.on_error)
        else:
            semantic_terminal.show(console, title, found, result.on_error)
    terminal.show_advice(console, result.leakage)


def show_end(console: Console, result: InspectionResult, config: Path | None) -> None:
    """Print how the data was split, which files were written, and the command that trains on the data.

    Args:
        console: Console to print to.
        result: The complete result.
        config: The config that was written if training accepts the data, or None.
    """
    if result.split:
        terminal.show_split(console, result.split)
        terminal.show_advice(console, result.split.advice())
    for note in result.notes:
        console.print(f"[yellow]{escape(note)}", soft_wrap=True)
    width = max((len(str(path)) for path, _ in result.written), default=0)
    for path, what in result.written:
        console.print(f"Wrote {escape(str(path).ljust(width))}  {what}", soft_wrap=True)
    if not result.is_accepted:
        console.print(f"[bold red]{escape(result.refusal)}", soft_wrap=True)
    elif config:
        command = shlex.join(["pvt-det", "train", "--config-file", str(config)])
        console.print(f"Train with: {escape(command)}", soft_wrap=True)
