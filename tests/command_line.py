"""Run a `pvt-det` command in the process of the test."""

from __future__ import annotations

from collections.abc import Sequence

from pvt_det.cli.start import start


def run_command(name: str, words: Sequence[object]) -> int:
    """Run `pvt-det NAME WORDS` and return the exit code. Errors are raised as exceptions."""
    return start(name, [str(word) for word in words], f"pvt-det {name}")
