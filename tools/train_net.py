"""Train or evaluate a detector, like `pvt-det train`. Copy this script to change the training.

Examples:
    python tools/train_net.py --config-file configs/retinanet_pvt_small.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/retinanet_pvt_small.yaml --eval-only MODEL.WEIGHTS model_final.pth
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pvt_det  # noqa: F401  # isort: skip  (before Detectron2, whose deprecation warnings it silences)
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator

from pvt_det.engine.defaults import config_from_args, default_argument_parser, default_setup, describe_options
from pvt_det.engine.evaluate import evaluate_weights
from pvt_det.engine.launch import launch
from pvt_det.engine.trainer import PVTTrainer
from pvt_det.utils.cli import run_cli
from pvt_det.utils.resume import resume_command


class Trainer(PVTTrainer):
    """The place for your own parts. You can also override `build_model` and `build_train_loader`."""

    def build_hooks(self) -> list[HookBase]:
        """Add your own hooks here."""
        return super().build_hooks()

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: Path) -> DatasetEvaluator:
        """Return your own evaluator here, for data sets that need one."""
        return super().build_evaluator(cfg, dataset_name, output_folder)


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config and apply the keys given on the command line."""
    # Register your own data sets here with `pvt_det.data.coco.registration.register_coco`, and name them in DATASETS.
    return config_from_args(args)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Train or evaluate. Runs in every process and returns the metrics on the main process."""
    cfg = setup(args)
    given = {"resume_command": args.resume_command, "note": describe_options(args, cfg)}
    with default_setup(cfg, resume=args.resume, eval_only=args.eval_only, **given):
        if args.eval_only:
            options = {"resume": args.resume, "allow_partial": args.allow_partial, "test": Trainer.test}
            return evaluate_weights(cfg, config_file=args.config_file, **options)
        trainer = Trainer(cfg, config_file=args.config_file)
        trainer.resume_or_load(args.resume, args.allow_partial, args.allow_change)
        return trainer.train()


def run() -> None:
    """Parse the command line and launch the processes."""
    args = default_argument_parser(__doc__ or "").parse_words(None)
    args.resume_command = resume_command(args.resume)
    processes = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    options = {"device": setup(args).MODEL.DEVICE, "resume_command": args.resume_command}
    launch(main, *processes, args=(args,), **options)


if __name__ == "__main__":
    sys.exit(run_cli(run))
