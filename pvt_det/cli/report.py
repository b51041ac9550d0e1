"""Write a page about a finished run: one HTML file that opens without network."""

from __future__ import annotations

import argparse
from pathlib import Path

from pvt_det.api import write_page
from pvt_det.run_folder import PAGE_NAME
from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  %(prog)s output/mine
  against another run on the same data:
    %(prog)s output/mine --against output/resnet18 --output mine.html

It tells metrics by class and size, precision and recall, kinds of errors (TIDE), confusions, calibration, the worst
images, training curves, environment and configuration. No model is needed: it reads what training or evaluation left.
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_argument("--against", type=Path, metavar="RUN", help="a run to compare it with")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the run's folder")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the page; returns the exit code."""
    output = args.output or (args.run if args.run.is_dir() else args.run.parent) / PAGE_NAME
    write_page(args.run, output, args.against)
    print(f"Open {output} in a browser.")
    return 0
