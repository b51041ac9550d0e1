"""Check this machine: versions, Detectron2, GPU, load, shared memory, limits, disks, weights and data sets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  %(prog)s
  %(prog)s --output /data/runs     also check the disk of this output folder

Each problem comes with the command that fixes it. A note means that something is small, slow or missing, which may be
intended.
exit codes: 0 no problem, 1 something does not work
"""
_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "bold red")}


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="DIR", help="folder for runs (%(default)s)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the state of this machine.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code: 1 if there is a problem, 0 otherwise.
    """
    from rich.text import Text

    from pvt_det.cli.machine import examine
    from pvt_det.utils.console import Console

    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    problems = 0
    for finding in examine(args.output):
        mark, style = _MARKS[finding.state]
        console.print(Text.assemble((f"{mark:8}", style), (f"{finding.name}: ", "bold"), finding.found))
        if finding.state != "ok":
            console.print(Text(f"        → {finding.fix}"))
        problems += finding.state == "problem"
    console.print(f"{problems} problem{'' if problems == 1 else 's'}" if problems else "no problems", style="bold")
    return 1 if problems else 0
