"""Evaluate a trained detector or segmentor on the data set of its run, or on another."""

from __future__ import annotations

import argparse

from pvt_det.commands import train
from pvt_det.engine.cli import ArgumentParser
from pvt_det.engine.predictor import config_file, run_weights

_EXAMPLES = """
examples:
  the best weights of a run, on its own validation data:
    %(prog)s --config-file output/mine
  on other images:
    %(prog)s --config-file output/mine --val-json test.json --val-images test/ --output output/mine_test
  at several scales, merged (test-time augmentation):
    %(prog)s --config-file output/mine TEST.AUG.ENABLED True

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="RUN", help="a run's output folder, or a config file")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best")
    train.add_job_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluate; gives the exit code."""
    path = config_file(args.config_file)
    weights = ["MODEL.WEIGHTS", run_weights(path, args.weights)]
    return train.start_job(args, str(path), weights, resume=False, eval_only=True)
