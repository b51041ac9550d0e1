"""Running a command of `pvt-det` within the test's process."""

from __future__ import annotations

from collections.abc import Sequence

from pvt_det.cli.start import start


def run_command(name: str, words: Sequence[object]) -> int:
    """Run `pvt-det NAME WORDS`; gives the exit code, and raises a user's mistake as the exception that it is."""
    return start(name, [str(word) for word in words], f"pvt-det {name}")
