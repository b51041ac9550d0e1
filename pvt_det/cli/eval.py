"""Evaluate a trained detector or segmentor on its run's data or on other: metrics, and a page about them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pvt_det.cli import report, train
from pvt_det.errors import PvtDetError
from pvt_det.inference.base import config_file, named_weights, run_weights
from pvt_det.reports.compare import load_run
from pvt_det.reports.report import PAGE_NAME
from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  the best weights of a run, on its own validation data:
    %(prog)s --config-file output/mine
  on other images, beside another run:
    %(prog)s --config-file output/mine --val-json test.json --val-images test/ --output output/mine_test \\
        --against output/other_test
  at several scales, merged (test-time augmentation):
    %(prog)s --config-file output/mine TEST.AUG.ENABLED True

The metrics are in results.json, and report.html is a page about them, for a browser, that needs no other file.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="RUN", help="a run's output folder, or a config file")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best")
    parser.add_argument("--against", type=Path, metavar="RUN", help="a run to compare it with on the page")
    train.add_job_options(parser, training=False)
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluate, and write the page; gives the exit code."""
    if args.against:
        # Before the evaluation, which may take hours.
        load_run(args.against)
    path = config_file(args.config_file)
    settings = ["MODEL.WEIGHTS", run_weights(path, named_weights(args.weights, args.overrides))]
    if Path(args.config_file).is_dir():
        # Where a run is now, not where it was trained.
        settings += ["OUTPUT_DIR", str(path.parent)]
    cfg = train.job_config(args, str(path), settings)
    code = train.start_job(args, cfg, str(path), resume=False, eval_only=True)
    if code == 0 and args.machine_rank == 0 and os.environ.get("RANK", "0") == "0":
        _write_page(Path(cfg.OUTPUT_DIR), args.against)
    return code


def _write_page(folder: Path, against: Path | None) -> None:
    try:
        report.write_page(folder, folder / PAGE_NAME, against)
    except PvtDetError as error:
        # The metrics are there: the evaluation has not failed.
        print(f"warning: no page is written: {error}", file=sys.stderr)
