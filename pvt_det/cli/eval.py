"""Evaluate a trained detector or segmentor on its run's data or on other: metrics, and a page about them."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pvt_det import api
from pvt_det.engine.defaults import add_run_options, config_from_args, launch_from_args
from pvt_det.run_folder import config_file, load_run, named_weights, run_weights
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
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="RUN", help="a run's output folder, or a config file")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best")
    parser.add_argument("--against", type=Path, metavar="RUN", help="a run to compare it with on the page")
    add_run_options(parser, training=False)
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluate, and write the page; returns the exit code."""
    if args.against:
        # Before the evaluation, which may take hours.
        load_run(args.against)
    path = config_file(args.config_file)
    settings = ["MODEL.WEIGHTS", run_weights(path, named_weights(args.weights, args.overrides))]
    if Path(args.config_file).is_dir():
        # Where a run is now, not where it was trained.
        settings += ["OUTPUT_DIR", str(path.parent)]
    cfg = config_from_args(args, path, settings)
    evaluate = partial(
        api.evaluate, config_file=str(path), allow_partial=tuple(args.allow_partial), page=True, against=args.against
    )
    launch_from_args(evaluate, cfg, args)
    return 0
