"""Train and evaluate a detector, on one or more devices and machines; also works under torchrun."""

from __future__ import annotations

import argparse
from functools import partial

from pvt_det.engine.options import default_argument_parser
from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  on your own data in COCO format:
    %(prog)s --config-file configs/retinanet_pvt_tiny.yaml --output output/mine \\
        --train-json train.json --train-images images/ --val-json val.json --val-images images/
  for 50 epochs of smaller images, with other settings as config keys:
    %(prog)s configs/retinanet_pvt_tiny.yaml --epochs 50 --batch-size 4 --lr 5e-5 \\
        --image-size 640 SOLVER.EMA.ENABLED=True
  log to MLflow as well as TensorBoard:
    %(prog)s configs/retinanet_pvt_tiny.yaml --logger tensorboard mlflow
  resume after an interruption:
    the same command with --resume
  resume with other image sizes:
    the same command with --resume --allow-change INPUT.MIN_SIZE_TRAIN INPUT.MIN_SIZE_TRAIN [640,800]
  evaluate:
    %(prog)s --eval-only --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_best.pth

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 6 lost process, 75 stopped and resumable
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    return default_argument_parser(__doc__ or "", _EXAMPLES)


def run(args: argparse.Namespace) -> int:
    """Train and evaluate, or only evaluate with `--eval-only`.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det import api
    from pvt_det.engine.defaults import config_from_args, describe_options, launch_from_args

    cfg = config_from_args(args)
    train = partial(api.train, resume_command=args.resume_command, allow_change=tuple(args.allow_change))
    job = api.evaluate if args.eval_only else train
    given = partial(job, config_file=args.config_file, resume=args.resume, allow_partial=tuple(args.allow_partial))
    launch_from_args(partial(given, note=describe_options(args, cfg)), cfg, args)
    return 0
