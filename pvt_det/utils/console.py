"""A Rich console that is safe for text from outside, such as file names."""

from __future__ import annotations

from collections.abc import Iterable

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from pvt_det.utils.text import printable


class Console(rich.console.Console):
    """Console that escapes control characters in the text that it prints, but not its own colors and cursor moves."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object into segments, as Rich does, with escaped text.

        Args:
            renderable: The object to print.
            options: Width and other options; None uses those of the console.
        """
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
