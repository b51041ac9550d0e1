"""Measure time and memory: `pvt-det benchmark` from a checkout."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pvt_det.cli.start import start
from pvt_det.utils.cli import run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return start("benchmark", argv, "python tools/benchmark.py")


if __name__ == "__main__":
    sys.exit(run_cli(main))
