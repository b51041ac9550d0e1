"""Shows how far a training run is: a live bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

logger = logging.getLogger(__name__)


class ProgressDisplay:
    """A live bar where `console` is a terminal, and log lines where it is not.

    Args:
        console: Where the bar is drawn. Log lines must go through the same console, or they tear the bar apart.
        total: Iterations of the whole run.
        done: Iterations already done, which is above 0 in a resumed run.
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
        """Whether there is a bar, whose status may change at every iteration."""
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
        """Move the bar, or log a line if there is something to say.

        Args:
            done: Iterations done in the whole run.
            status: Losses, speed and the like. If it is empty, the bar keeps its last one and no line is logged.
        """
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            if status:
                self._bar.update(self._task, status=status)
        elif status:
            logger.info("iteration %d/%d  %s", done, self._total, status)
