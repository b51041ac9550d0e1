"""Show the progress of a training run, as a live bar on a terminal and as log lines elsewhere."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

logger = logging.getLogger(__name__)


class ProgressDisplay:
    """Shows a live progress bar if `console` is a terminal, and log lines otherwise.

    Args:
        console: The console that the bar is drawn on. Log lines must use the same console to not break the bar.
        total: Number of iterations of the whole run.
        done: Number of iterations already done, above 0 in a resumed run.
    """

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self._total = total
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[status]}"), console=console)
            self._task = self._bar.add_task("train", total=total, completed=done, status="")

    @property
    def is_live(self) -> bool:
        """Whether a bar is shown, whose status can be updated at every iteration."""
        return self._bar is not None

    def start(self) -> None:
        """Draw the bar."""
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        """Stop redrawing the bar."""
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, status: str = "") -> None:
        """Update the bar, or log a line if there is a status.

        Args:
            done: Number of iterations done in the whole run.
            status: Losses, speed and similar values. If empty, the bar keeps its last status and no line is logged.
        """
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            if status:
                self._bar.update(self._task, status=status)
        elif status:
            logger.info("iteration %d/%d  %s", done, self._total, status)
