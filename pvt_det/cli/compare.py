"""Compare finished runs: size, training time and memory, published and measured AP, and the difference between runs.

Example:
    %(prog)s output/pvt_tiny output/resnet18 --format markdown --output comparison.md

All runs are compared with the first one. Differences come with a bootstrap interval of 95 percent over the images.
Different recipes or data sets, and files that have changed since the evaluation, cause a warning on stderr. A training
run is shown with its last checkpoint; for the best one, evaluate it and give RUN/evaluation/DATASET.

The table has one column per run and fits the terminal. Markdown has one row per run, for a README. CSV has one row per
run and always the same columns for the same task, for spreadsheets and scripts.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_det.errors import ConfigError
from pvt_det.reports.defaults import BOOTSTRAP, TOLERANCE
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.paths import make_parent_folder

if TYPE_CHECKING:
    from pvt_det.results import Run


def run(args: argparse.Namespace) -> int:
    """Compare the runs, print the table, and write it to a file with `--output`.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det.reports.compare import comparison_rows, comparison_warnings
    from pvt_det.results import load_run
    from pvt_det.utils.console import Console
    from pvt_det.utils.tables import as_columns, as_csv, as_markdown, render, without_empty

    logging.getLogger("detectron2").setLevel(logging.ERROR)
    if args.bootstrap < 1:
        raise ConfigError(f"--bootstrap {args.bootstrap}: expected 1 or more.")
    if not args.tolerance >= 0:
        raise ConfigError(f"--tolerance {args.tolerance:g}: expected 0 points or more.")
    if args.output:
        make_parent_folder(args.output)
    runs = [load_run(path) for path in args.runs]
    for warning in comparison_warnings(runs):
        print(f"warning: {warning}", file=sys.stderr)
    gmacs = {run.folder: _gmacs(run) for run in runs}
    rows = comparison_rows(runs, gmacs, samples=args.bootstrap, tolerance=args.tolerance)
    if args.format == "table":
        console = Console()
        table = as_columns(without_empty(rows), console.width)
        console.print(table)
        text = render(table, console.width)
    else:
        text = as_markdown(without_empty(rows)) if args.format == "markdown" else as_csv(rows)
        print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 0


def _gmacs(run: Run) -> str:
    from pvt_det.reports.compare import describe_gmacs
    from pvt_det.run_folder import CONFIG_NAME

    images = run.folder / run.ground_truth.file if run.ground_truth else run.annotations
    return run.gmacs or describe_gmacs(run.folder / CONFIG_NAME, images)


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or an evaluation")
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table", help="default: table")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table to this file")
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=BOOTSTRAP,
        metavar="N",
        help=f"number of bootstrap samples (default {BOOTSTRAP})",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="POINTS",
        help="largest difference from the published number that counts as reproduced (default %(default)s)",
    )
    return parser
