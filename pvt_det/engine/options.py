"""Command-line options of all training scripts. Importing them imports neither torch nor Detectron2."""

from __future__ import annotations

import argparse

from pvt_det.engine.run_parser import RunParser, image_size, logger_names
from pvt_det.utils.cli import ArgumentParser, add_public_key

# Options that set a key of the config.
SHORTCUTS = {
    "output": ("OUTPUT_DIR", "DIR", "folder for everything that the run writes"),
    "train_json": (
        "DATASETS.TRAIN_JSON",
        "FILE",
        "annotations to train on, in COCO's format; they define the classes; may be repeated",
    ),
    "train_images": (
        "DATASETS.TRAIN_IMAGES",
        "DIR",
        "images of the training annotations, or shards; a URL works too; one for all, or repeated for each",
    ),
    "val_json": ("DATASETS.VAL_JSON", "FILE", "annotations to evaluate on, in COCO's format"),
    "val_images": ("DATASETS.VAL_IMAGES", "DIR", "images of the validation annotations, or shards; a URL works too"),
    "train_labels": ("DATASETS.TRAIN_LABELS", "DIR", "label maps to train on, for segmentation; may be repeated"),
    "val_labels": ("DATASETS.VAL_LABELS", "DIR", "label maps to evaluate on"),
    "check_data": ("DATASETS.CHECK", "full|fast|off", "how thoroughly to check the data before training"),
    "on_error": ("DATASETS.ON_ERROR", "stop|skip|strict", "how to handle broken data"),
    "evaluator": ("TEST.EVALUATOR", "hotcoco|pycocotools", "library that computes AP; both give the same numbers"),
    "epochs": ("SOLVER.EPOCHS", "N", "passes over the training images, instead of SOLVER.MAX_ITER"),
    "batch_size": ("SOLVER.IMS_PER_BATCH", "N", "images per batch, over all processes"),
    "lr": ("SOLVER.BASE_LR", "RATE", "learning rate after the warm-up"),
    "seed": ("SEED", "N", "seed of all random numbers; -1 draws one"),
    "device": ("MODEL.DEVICE", "DEVICE", "cuda, cuda:1, mps or cpu"),
    "logger": (
        "LOGGERS",
        "NAME [NAME ...]",
        "loggers: tensorboard, mlflow, wandb, those of other packages, or none",
    ),
}
# Options whose value is not the text of the key's value.
_CONVERTED = {"logger": logger_names}
# Options that may be given several times.
_REPEATED = ("train_json", "train_images", "train_labels")
# Options for training only, and those whose effect is logged.
_TRAINING_ONLY = (*_REPEATED, "epochs", "batch_size", "lr", "seed", "logger")
LOGGED = ("epochs", "batch_size", "lr", "seed", "device")


def default_argument_parser(description: str = "", epilog: str = "") -> ArgumentParser:
    """Build the parser of a training script: the options of Detectron2, plus shortcuts for config keys.

    Args:
        description: Description of the script for `--help`.
        epilog: Examples, shown below the options. `%(prog)s` becomes the script's name.

    Returns:
        The parser.
    """
    parser = RunParser(description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="a file in configs/, or your own; needs no option if it comes first",
    )
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
    add_public_key(parser, "the folder of MODEL.WEIGHTS")
    add_run_options(parser, training=True)
    return parser


def add_run_options(parser: ArgumentParser, *, training: bool) -> None:
    """Add the options that training and evaluation share.

    Args:
        parser: The parser to add them to.
        training: Whether to also add the options for training data.
    """
    shown = {name: row for name, row in SHORTCUTS.items() if training or name not in _TRAINING_ONLY}
    for name, (key, value, description) in shown.items():
        convert = _CONVERTED.get(name, str)
        action = "append" if name in _REPEATED else "store"
        help_text = f"{description} ({key})"
        parser.add_argument(option_name(name), type=convert, action=action, metavar=value, help=help_text)
    sizes = "INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN, " if training else "INPUT."
    sizes += "MIN_SIZE_TEST, MAX_SIZE_TEST"
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="PIXELS",
        help="side of the square that images are scaled to fit into, as in 640 (with label maps: their short side), or "
        f"their short side and the longest that the other may be, as in 480 640 ({sizes})",
    )
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
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="CONFIG KEY VALUE",
        help="the config, unless --config-file is given, then keys and values as KEY VALUE or KEY=VALUE",
    )


def option_name(name: str) -> str:
    """Return the option for a key of `SHORTCUTS`.

    Args:
        name: The key, such as "batch_size".
    """
    return f"--{name.replace('_', '-')}"
