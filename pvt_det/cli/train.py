"""Train and evaluate a detector, on one device, several, or several machines; also under torchrun."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.config import CfgNode

from pvt_det.config import load_config
from pvt_det.engine.launch import Processes, launch
from pvt_det.engine.run import JobOptions, job
from pvt_det.errors import ConfigError
from pvt_det.utils.cli import ArgumentParser

_EXAMPLES = """
examples:
  on your own data, in COCO's format, without any code:
    %(prog)s --config-file configs/retinanet_pvt_tiny.yaml --output output/mine \\
        --train-json train.json --train-images images/ --val-json val.json --val-images images/
  go on after an interruption:
    the same command with --resume
  evaluate:
    %(prog)s --eval-only --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_best.pth

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 75 stopped and resumable
"""
# Options that stand for a key of the config.
_SHORT_FOR = {
    "output": ("OUTPUT_DIR", "DIR", "folder for everything that the run writes"),
    "train_json": ("DATASETS.TRAIN_JSON", "FILE", "annotations to train on; classes come from it"),
    "train_images": ("DATASETS.TRAIN_IMAGES", "DIR", "their images"),
    "val_json": ("DATASETS.VAL_JSON", "FILE", "annotations to evaluate on"),
    "val_images": ("DATASETS.VAL_IMAGES", "DIR", "their images"),
    "train_labels": ("DATASETS.TRAIN_LABELS", "DIR", "their label maps, for segmentation"),
    "val_labels": ("DATASETS.VAL_LABELS", "DIR", "theirs, to evaluate on"),
    "check_data": ("DATASETS.CHECK", "full|fast|off", "how the data is checked before the first step"),
    "on_error": ("DATASETS.ON_ERROR", "stop|skip|strict", "what to do about broken data"),
    "evaluator": ("TEST.EVALUATOR", "hotcoco|pycocotools", "what computes AP; the numbers are the same"),
}


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="one of configs/, or your own")
    parser.add_argument("--resume", action="store_true", help="go on from the output folder's last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    add_job_options(parser, training=True)
    return parser


def add_job_options(parser: ArgumentParser, *, training: bool) -> None:
    """Add the options that training and evaluation share, and with `training` those of the training data."""
    shown = {name: row for name, row in _SHORT_FOR.items() if training or not name.startswith("train_")}
    for name, (key, value, text) in shown.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=value, help=f"{text} ({key})")
    parser.add_argument(
        "--strict",
        dest="on_error",
        action="store_const",
        const="strict",
        help="refuse data that anything is wrong with, even what could be fixed (--on-error strict)",
    )
    parser.add_argument(
        "--allow-partial",
        action="append",
        default=[],
        metavar="PATTERN",
        help="keys of MODEL.WEIGHTS that may be missing or left over, such as 'head.*'; may be repeated",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="processes on each machine: GPUs, or with MODEL.DEVICE cpu, parts of the CPU",
    )
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="where the processes meet, tcp://HOST:PORT")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of the config and their values")


def run(args: argparse.Namespace) -> int:
    """Train and evaluate, or only evaluate; gives the exit code."""
    cfg = job_config(args, args.config_file)
    return start_job(args, cfg, args.config_file, resume=args.resume, eval_only=args.eval_only)


def job_config(args: argparse.Namespace, config_file: str, settings: Sequence[str] = ()) -> CfgNode:
    """The config of a job.

    Args:
        args: The options of `add_job_options`.
        config_file: The config.
        settings: Keys of the config and their values, which those of `args` go over.
    """
    given = {key: getattr(args, name, None) for name, (key, _, _) in _SHORT_FOR.items()}
    short = [word for key, value in given.items() if value is not None for word in (key, value)]
    return load_config(config_file, [*settings, *args.overrides, *short])


def start_job(args: argparse.Namespace, cfg: CfgNode, config_file: str, *, resume: bool, eval_only: bool) -> int:
    """Start a job in its processes.

    Args:
        args: The options of `add_job_options`.
        cfg: What `job_config` gives of them.
        config_file: Where it came from.
        resume: Go on from the output folder's last checkpoint.
        eval_only: Evaluate, without training.

    Returns:
        The exit code.
    """
    if args.allow_partial and not cfg.MODEL.WEIGHTS and not eval_only:
        raise ConfigError("--allow-partial is for MODEL.WEIGHTS, which is empty: name weights, or leave it out.")
    options = JobOptions(
        config_file=config_file,
        command=f"{args.command_line} --resume",
        resume=resume,
        eval_only=eval_only,
        allow_partial=tuple(args.allow_partial),
    )
    processes = Processes(
        per_machine=args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
        device=cfg.MODEL.DEVICE.split(":")[0],
    )
    return launch(job, (cfg, options), processes)
