"""Check and show a data set before training on it: `pvt-det inspect` from a checkout."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pvt_det.cli.start import start
from pvt_det.utils.cli import run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return start("inspect", argv, "python tools/inspect_dataset.py")


if __name__ == "__main__":
    sys.exit(run_cli(main))
