"""Convert weights between layouts: `pvt-det convert` from a checkout."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pvt_det.cli.start import start
from pvt_det.utils.cli import run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code."""
    return start("convert", argv, "python tools/convert_weights.py")


if __name__ == "__main__":
    sys.exit(run_cli(main))
