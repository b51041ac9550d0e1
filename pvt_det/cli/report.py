"""Write a page about a finished run: one HTML file that opens without network."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pvt_det.reports.report import PAGE_NAME, write_report
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
    """Write the page; gives the exit code."""
    output = args.output or (args.run if args.run.is_dir() else args.run.parent) / PAGE_NAME
    write_page(args.run, output, args.against)
    return 0


def write_page(folder: Path, output: Path, against: Path | None) -> None:
    """Write the page of a run's folder, and say so.

    Raises:
        DataError: A file of the run is missing or broken.
    """
    for name in ("detectron2", "matplotlib.font_manager"):
        logging.getLogger(name).setLevel(logging.ERROR)
    write_report(folder, output, against)
    print(f"Open {output} in a browser.")
