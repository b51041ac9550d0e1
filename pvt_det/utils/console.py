"""Print to the terminal with Rich, with control characters in file names and messages escaped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from pvt_det.utils.text import printable


class Console(rich.console.Console):
    """Console that escapes control characters in the text that it prints, but not its own colors and cursor moves."""

    @property
    def file(self) -> IO[str]:
        """The stream to write to."""
        stream = super().file
        # Two streams escape what is printed: `run_cli` replaces standard output, and so does Rich while a bar is shown.
        while (inner := getattr(stream, "rich_proxied_file", None)) is not None:
            stream = inner
        return stream

    @file.setter
    def file(self, stream: IO[str] | None) -> None:
        """Set the stream to write to.

        Args:
            stream: The stream. None follows `sys.stdout`.
        """
        self._file = stream

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object into segments, as Rich does, with escaped text.

        Args:
            renderable: The object to print.
            options: Width and other options; None uses those of the console.
        """
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


@cache
def get_console() -> Console:
    """Return the console of standard output. The bars and the log of a run share it, so that they do not mix."""
    return Console()


@contextmanager
def steps_shown() -> Iterator[Callable[[str], object]]:
    """Context manager that shows which step of a slow command runs: on a terminal in place, elsewhere on stderr.

    Yields:
        A function to call with the name of each step before it begins.
    """
    console = get_console()
    if not console.is_interactive:
        yield lambda step: print(step, file=sys.stderr, flush=True)
        return
    with console.status("") as status:
        yield status.update
