"""Show progress: a live line per task on a terminal, and log lines at intervals elsewhere."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import Progress, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.text import Text

from pvt_det.utils.console import get_console

# Cells of the bar. The name of the task and then its details are shown where they leave room for a bar of this length.
_BESIDE_NAME, _BESIDE_DETAILS, _LONGEST_BAR = 8, 12, 40
# Cells left free at the end of a line, where the terminal shows "^C". If it had to wrap, the line would stay.
_ECHO = 2
# The recent speed is that of the last 30 seconds, but at least of the last 20 steps.
_RECENT_SECONDS, _RECENT_STEPS = 30.0, 20
# Without a terminal, a task logs a line every 10 percent, at least every minute and at most every 10 seconds.
_SHARE_OF_LINE, _MOST_SECONDS, _LEAST_SECONDS = 0.1, 60.0, 10.0
logger = logging.getLogger(__name__)


class Pace:
    """Measures the recent speed of a task.

    Args:
        done: Number of steps that are already done.
    """

    def __init__(self, done: float = 0) -> None:
        self._points = deque([(time.perf_counter(), done)])
        self._has_first = True
        self._left_out = 0.0

    def reach(self, done: float) -> None:
        """Record that a step has ended.

        Args:
            done: Number of steps done so far.
        """
        points, now = self._points, time.perf_counter() - self._left_out
        if done <= points[-1][1]:
            return
        points.append((now, done))
        if self._has_first and len(points) > 2:
            # The first step is slower than the others.
            points.popleft()
            self._has_first = False
        while len(points) > _RECENT_STEPS + 1 and now - points[1][0] > _RECENT_SECONDS:
            points.popleft()

    def leave_out(self, seconds: float) -> None:
        """Leave out time since the last step, such as that of an evaluation.

        Args:
            seconds: The time in seconds.
        """
        self._left_out += seconds

    @property
    def seconds_per_step(self) -> float | None:
        """Mean duration of the recent steps in seconds, or None before the first one has ended."""
        (start, before), (end, done) = self._points[0], self._points[-1]
        return (end - start) / (done - before) if done > before else None

    def eta(self, total: float | None) -> str:
        """Format the remaining time, as in "eta 0:12:34" or "eta 1d 03:04".

        Args:
            total: Number of steps of the whole task, or None if it is unknown.
        """
        seconds_per_step = self.seconds_per_step
        if total is None or seconds_per_step is None:
            return "eta -:--:--"
        minutes, seconds = divmod(int(seconds_per_step * max(0.0, total - self._points[-1][1])), 60)
        hours, minutes = divmod(minutes, 60)
        days, hours = divmod(hours, 24)
        return f"eta {days}d {hours:02}:{minutes:02}" if days else f"eta {hours}:{minutes:02}:{seconds:02}"


class _Line:
    """One line about a task: bar, counter, remaining time and headline always, its name and details if they fit."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        task, fields = self._task, self._task.fields
        shown = " ".join(filter(None, (_counter(task), fields["pace"].eta(task.total), fields["headline"])))
        room = options.max_width - _ECHO - cell_len(shown) - 1
        name = f"{task.description} "
        if cell_len(name) + _BESIDE_NAME > room:
            name = ""
        room -= cell_len(name)
        for detail in fields["details"]:
            if cell_len(detail) + 2 + _BESIDE_DETAILS > room:
                break
            shown += f"  {detail}"
            room -= cell_len(detail) + 2
        yield Text(name, end="")
        width = max(1, min(_LONGEST_BAR, room))
        yield _bar(task, width, console, options)
        yield Text(f" {shown}", no_wrap=True, overflow="crop")


def _bar(task: Task, width: int, console: Console, options: ConsoleOptions) -> RenderableType:
    if console.color_system and not console.no_color:
        return ProgressBar(task.total, task.completed, width, animation_time=task.get_time())
    # The two parts of Rich's bar differ in their color only.
    full, empty = ("#", "-") if options.ascii_only else ("━", "─")
    filled = int(width * task.percentage / 100)
    return Text(full * filled + empty * (width - filled), end="")


def _counter(task: Task) -> str:
    return f"{task.completed:.0f}/{'?' if task.total is None else f'{task.total:.0f}'}"


class Bars(Progress):
    """Progress of one or more tasks: a live line per task on a terminal, and lines at intervals elsewhere.

    The tasks of `rich.progress.Progress` have two more fields here. `headline` is always shown and `details`, a list of
    strings, as far as they fit.

    Args:
        console: The console to draw on. Log lines must use the same console to not break the bars.
        say: Prints a line about a task if the console is not a terminal.

    Attributes:
        notice: A line shown below the bars. A signal handler may set it.
    """

    def __init__(self, console: Console, say: Callable[[str], object] = logger.info) -> None:
        self.notice = ""
        self._say = say
        super().__init__(console=console, disable=not console.is_interactive)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the lines to draw."""
        yield from (_Line(task) for task in self.tasks if task.visible)
        if self.notice:
            yield Text(self.notice, style="bold yellow")

    def start(self) -> None:
        """Draw the bars. Until `stop`, `track` adds its tasks to them."""
        _shown.append(self)
        super().start()

    def stop(self) -> None:
        """Stop redrawing the bars."""
        if not self.disable:  # before version 14.3, rich prints an empty line
            super().stop()
        if self in _shown:
            _shown.remove(self)

    def add_task(self, description: str, *args: Any, **options: Any) -> TaskID:
        """Add a task.

        Args:
            description: Its name.
            args: Further arguments of `rich.progress.Progress.add_task`.
            options: Its keyword arguments, such as `total` and `completed`, the numbers of steps, and `headline` and
                `details`. Without a terminal, a task that is not `visible` logs no lines.

        Returns:
            The task, for `advance` and `update`.
        """
        done = options.get("completed", 0)
        added: dict[str, Any] = {"headline": "", "details": (), "pace": Pace(done), "said": (time.monotonic(), done)}
        return super().add_task(description, *args, **added | options)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Record that steps of a task have ended.

        Args:
            task_id: The task.
            advance: Number of steps.
        """
        super().advance(task_id, advance)
        self._step_ended(self._tasks[task_id])

    def reach(self, task_id: TaskID, done: int, **fields: Any) -> None:
        """Record how many steps of a task have ended, and change its fields.

        Args:
            task_id: The task.
            done: Number of steps done so far.
            fields: `headline` and `details`.
        """
        self.update(task_id, completed=done, **fields)
        self._step_ended(self._tasks[task_id])

    def pace(self, task_id: TaskID) -> Pace:
        """Return the speed of a task.

        Args:
            task_id: The task.
        """
        pace: Pace = self._tasks[task_id].fields["pace"]
        return pace

    def _step_ended(self, task: Task) -> None:
        task.fields["pace"].reach(task.completed)
        if not self.disable or not task.visible:
            return
        at, done = task.fields["said"]
        seconds, share = time.monotonic() - at, (task.completed - done) / (task.total or float("inf"))
        if seconds >= _LEAST_SECONDS and (share >= _SHARE_OF_LINE or seconds >= _MOST_SECONDS):
            task.fields["said"] = time.monotonic(), task.completed
            self._say(f"{task.description} {_counter(task)}  {task.fields['pace'].eta(task.total)}")


# The bars on the screen, the last one in front.
_shown: list[Bars] = []


@contextmanager
def track(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Context manager that shows the progress of a task, below the bar of the run if there is one.

    Its time does not count for the speed of the tasks that are already shown, which wait for it.

    Args:
        description: Name of the task, such as "evaluating".
        total: Number of its steps.

    Yields:
        A function to call after each step.
    """
    is_part = bool(_shown)
    with nullcontext(_shown[-1]) if is_part else Bars(get_console()) as bars:
        waiting = [bars.pace(task) for task in bars.task_ids]
        started = time.perf_counter()
        task = bars.add_task(description, total=total)
        try:
            yield lambda: bars.advance(task)
        finally:
            if is_part:
                bars.remove_task(task)
                # Log lines are drawn with the last frame. With one more line than the next frame, it would stay.
                bars.refresh()
            for pace in waiting:
                pace.leave_out(time.perf_counter() - started)


def show_notice(text: str) -> None:
    """Show a line below the bars on the screen, or on stderr if there are none. Safe in a signal handler.

    Args:
        text: The line.
    """
    if _shown and not _shown[-1].disable:
        # The thread of the bars draws it within a tenth of a second. Writing here could end up in the middle of a bar.
        _shown[-1].notice = text
        return
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


class ProgressDisplay:
    """Progress of a training run: a live line if `console` is a terminal, and log lines otherwise.

    Args:
        console: The console that the bar is drawn on. Log lines must use the same console to not break the bar.
        total: Number of iterations of the whole run.
        done: Number of iterations already done, above 0 in a resumed run.
    """

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self._total = total
        self._bars = Bars(console)
        self._task = self._bars.add_task("training", total=total, completed=done, visible=self.is_live)

    @property
    def is_live(self) -> bool:
        """Whether a bar is shown, whose values can be updated at every iteration."""
        return not self._bars.disable

    @property
    def seconds_per_iteration(self) -> float | None:
        """Mean duration of the recent iterations in seconds, or None before the first one has ended."""
        return self._bars.pace(self._task).seconds_per_step

    def start(self) -> None:
        """Draw the bar."""
        self._bars.start()

    def stop(self) -> None:
        """Stop redrawing the bar."""
        self._bars.stop()

    def advance(self, done: int) -> None:
        """Advance the bar. Call it after every iteration, so that the remaining time follows the recent speed.

        Args:
            done: Number of iterations done in the whole run.
        """
        self._bars.reach(self._task, done)

    def show(self, done: int, headline: str, details: Sequence[str] = ()) -> None:
        """Show values on the bar, which keeps them, or log a line.

        Args:
            done: Number of iterations done in the whole run.
            headline: The most important value, such as "total_loss 0.53". It is always shown.
            details: Other values. A narrow terminal shows the first ones.
        """
        self._bars.reach(self._task, done, headline=headline, details=details)
        if not self.is_live:
            eta = self._bars.pace(self._task).eta(self._total)
            logger.info("iteration %d/%d  %s", done, self._total, "  ".join([eta, headline, *details]))
