"""Command-line options of all training scripts. Importing them imports neither torch nor Detectron2."""

from __future__ import annotations

import argparse

from pvt_det.utils.cli import ArgumentParser

# Options that set a key of the config.
SHORTCUTS = {
    "output": ("OUTPUT_DIR", "DIR", "folder for everything that the run writes"),
    "train_json": ("DATASETS.TRAIN_JSON", "FILE", "annotations to train on; they define the classes"),
    "train_images": ("DATASETS.TRAIN_IMAGES", "DIR", "images of the training annotations"),
    "val_json": ("DATASETS.VAL_JSON", "FILE", "annotations to evaluate on"),
    "val_images": ("DATASETS.VAL_IMAGES", "DIR", "images of the validation annotations"),
    "train_labels": ("DATASETS.TRAIN_LABELS", "DIR", "label maps to train on, for segmentation"),
    "val_labels": ("DATASETS.VAL_LABELS", "DIR", "label maps to evaluate on"),
    "check_data": ("DATASETS.CHECK", "full|fast|off", "how thoroughly to check the data before training"),
    "on_error": ("DATASETS.ON_ERROR", "stop|skip|strict", "how to handle broken data"),
    "evaluator": ("TEST.EVALUATOR", "hotcoco|pycocotools", "library that computes AP; both give the same numbers"),
}


def default_argument_parser(description: str = "", epilog: str = "") -> ArgumentParser:
    """Build the parser of a training script: the options of Detectron2, plus shortcuts for config keys.

    Args:
        description: Description of the script for `--help`.
        epilog: Examples, shown below the options. `%(prog)s` becomes the script's name.

    Returns:
        The parser.
    """
    parser = ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a file in configs/, or your own")
    parser.add_argument("--resume", action="store_true", help="resume from the output folder's last checkpoint")
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="config key that may differ from the checkpoint's with --resume, such as INPUT.MIN_SIZE_TRAIN or "
        "'INPUT.*'; may be repeated",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    add_run_options(parser, training=True)
    return parser


def add_run_options(parser: ArgumentParser, *, training: bool) -> None:
    """Add the options that training and evaluation share.

    Args:
        parser: The parser to add them to.
        training: Whether to also add the options for training data.
    """
    shown = {name: row for name, row in SHORTCUTS.items() if training or not name.startswith("train_")}
    for name, (key, value, description) in shown.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=value, help=f"{description} ({key})")
    parser.add_argument(
        "--strict",
        dest="on_error",
        action="store_const",
        const="strict",
        help="reject data with any fault, even one that could be fixed (--on-error strict)",
    )
    parser.add_argument(
        "--allow-partial",
        action="append",
        default=[],
        metavar="PATTERN",
        help="keys of MODEL.WEIGHTS that may be missing or unexpected, such as 'head.*'; may be repeated",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="number of processes per machine, one per GPU; with MODEL.DEVICE cpu they share the CPU cores",
    )
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="rank of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="initialization URL of the process group, tcp://HOST:PORT")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their values")
