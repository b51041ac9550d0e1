"""Evaluate a trained detector or segmentor on its own validation data or on other data, and write a report page."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from pvt_det.engine.options import add_run_options
from pvt_det.engine.run_parser import RunParser
from pvt_det.utils.cli import add_public_key

_EXAMPLES = """
examples:
  the best checkpoint of a run, on its own validation data:
    %(prog)s output/mine
  on other images, compared with another run:
    %(prog)s --config-file output/mine --val-json test.json --val-images test/ --output output/mine_test \\
        --against output/other_test
  an exported file, which gets the AP of what is deployed:
    %(prog)s mine.onnx --val-json test.json --val-images test/
  at several scales, merged (test-time augmentation):
    %(prog)s output/mine TEST.AUG.ENABLED=True

Writes the metrics to evaluation.json, and a report to report.html: a single file to open in a browser. For a run
folder and without --output, they are in evaluation/DATASET in that folder; for mine.onnx in mine_onnx_evaluation.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric
"""


def build_parser() -> RunParser:
    """Build the parser of the command's options."""
    parser = RunParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        default="",
        metavar="RUN",
        help="run folder, config file or exported file; needs no option if it comes first",
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best checkpoint")
    parser.add_argument(
        "--against", type=Path, metavar="RUN", help="run or exported file to compare with in the report"
    )
    add_public_key(parser)
    add_run_options(parser, training=False)
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluate the model and write the report page.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det import api
    from pvt_det.engine.defaults import config_from_args, describe_options, launch_from_args
    from pvt_det.engine.run_config import find_run
    from pvt_det.results import load_run

    if args.against:
        # Fails early: the evaluation may take hours.
        load_run(args.against)
    path, settings = find_run(args.config_file, args.weights, args.overrides, args.public_key)
    cfg = config_from_args(args, path, settings)
    evaluate = partial(
        api.evaluate,
        config_file=str(path),
        allow_partial=tuple(args.allow_partial),
        page=True,
        against=args.against,
        note=describe_options(args, cfg),
    )
    launch_from_args(evaluate, cfg, args)
    return 0
