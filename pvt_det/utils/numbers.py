"""Numbers that are shown with two decimal places, on pages as in the terminal, and durations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Number(float):
    """A number shown with two decimal places."""

    def __str__(self) -> str:
        return f"{float(self):.2f}"


class Signed(float):
    """A difference shown with two decimal places and its sign."""

    def __str__(self) -> str:
        return f"{float(self):+.2f}"


def cells(values: Iterable[float | None]) -> list[Any]:
    """Return the cells of a table row. Missing values (None and NaN) become empty strings.

    Args:
        values: The numbers, such as metrics in percent.
    """
    return ["" if value is None or value != value else Number(value) for value in values]


def clock(seconds: float) -> str:
    """Format a duration as hours, minutes and seconds, such as "1:02:03".

    Args:
        seconds: The duration in seconds.
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
