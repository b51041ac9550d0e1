"""Check a data set before training, show statistics and images, and write a config to train on it.

Example:
    %(prog)s train.json images/ --val-json val.json --val-images images/ --html report.html --write-config mine.yaml
    %(prog)s labels/ images/ --val-labels val_labels/ --val-images val/ --class-names names.txt --write-config mine.yaml

Reads COCO json, CVAT xml, and folders of Pascal VOC xml or YOLO txt files. For Pascal VOC, also a list of
ImageSets/Main, such as train.txt. For semantic segmentation, a folder of label maps: PNG files with the names of the
images. Problems are fixed, dropped or refused as in training.

exit codes: 0 training accepts the data, 2 configuration, 3 training refuses the data, or --strict finds anything to
report
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.markup import escape

from pvt_det.config.table import choices
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.inspection.config_file import Plan, check_place, write_config
from pvt_det.inspection.inspect import Advice, Inspection, find_leakage, inspect_dataset
from pvt_det.inspection.page import inspection_page
from pvt_det.inspection.recommend import TASKS, recommend
from pvt_det.inspection.semantic.run import LabelFolders, inspect_label_folders
from pvt_det.inspection.semantic.scan import is_label_folder
from pvt_det.inspection.terminal import show, show_advice
from pvt_det.models import list_models
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.console import Console
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_parent_folder
from pvt_det.weights.source import locate

_BATCHES = {"cpu": 4, "gpu": 16}
_MODEL = "pvt_tiny"
_SEMANTIC = "semantic"


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "annotations", type=Path, metavar="ANNOTATIONS", help="annotation file, or folder of them or of label maps"
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of the images")
    parser.add_argument(
        "--val-json", type=Path, metavar="FILE", help="annotations to evaluate on, in any of these formats"
    )
    parser.add_argument("--val-labels", type=Path, metavar="DIR", help="label maps to evaluate on")
    parser.add_argument(
        "--val-images", type=Path, metavar="DIR", help="images of --val-json or --val-labels (default: IMAGES)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with images to this single file")
    parser.add_argument(
        "--check-data", choices=choices("DATASETS.CHECK"), default="fast", help="how to check the images"
    )
    parser.add_argument(
        "--on-error", choices=choices("DATASETS.ON_ERROR"), default="stop", help="what to do with broken data"
    )
    parser.add_argument(
        "--strict", dest="on_error", action="store_const", const="strict", help="same as --on-error strict"
    )
    parser.add_argument("--allow-outside", action="store_true", help="allow file names outside IMAGES")
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE", help="class names of label maps: text with one per line, or JSON"
    )
    parser.add_argument(
        "--ignore-value", type=int, metavar="N", help="value of void in label maps (default: found from the values)"
    )
    parser.add_argument(
        "--task",
        choices=(*TASKS, _SEMANTIC),
        help=f"default: {_SEMANTIC} for label maps, mask-rcnn if every object has a mask, otherwise retinanet",
    )
    config = parser.add_argument_group("config for training")
    config.add_argument("--write-config", type=Path, metavar="FILE", help="write the config to this file")
    config.add_argument("--model", choices=list_models(), metavar="NAME", help=f"default: {_MODEL}")
    config.add_argument(
        "--weights",
        metavar="FILE",
        help="default: ImageNet weights of the model, if they can be downloaded; none: random weights",
    )
    config.add_argument(
        "--device", choices=tuple(_BATCHES), help="device to train on (default: a GPU if this machine has one)"
    )
    config.add_argument("--batch", type=int, metavar="N", help="images per iteration (default: 4 on a CPU, 16 on GPUs)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Inspect the data, print what was found, and write the page and the config with `--html` and `--write-config`.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    is_semantic = _check_task(args)
    if args.val_images and not (args.val_json or args.val_labels):
        raise ConfigError("--val-images needs --val-json or --val-labels. Add the annotations of these images.")
    if args.batch is not None and args.batch < 1:
        raise ConfigError(f"--batch {args.batch}: expected 1 or more.")
    unused = [f"--{name}" for name in ("model", "weights", "device", "batch") if getattr(args, name) is not None]
    if unused and not args.write_config:
        raise ConfigError(f"{', '.join(unused)} has no effect without --write-config FILE. Add it, or leave them out.")
    if args.write_config:
        check_place(args.write_config)
    if args.html:
        make_parent_folder(args.html)
    console = Console()
    if is_semantic:
        return inspect_label_folders(
            _label_folders(args), console, args.html, args.write_config, lambda: _plan(args, console, _SEMANTIC)
        )
    with tempfile.TemporaryDirectory() as temporary, console.status("Reading the data …"):
        parts = _inspect(args, Path(temporary))
        leakage = find_leakage(parts[0][1], parts[1][1]) if len(parts) > 1 else []
        for name, found in parts:
            show(console, name, found, args.on_error)
        show_advice(console, leakage)
        if args.html:
            page = inspection_page(f"Data set {args.annotations}", parts, leakage, args.on_error)
            write_atomically(args.html, page)
            console.print(f"Page: {escape(str(args.html))}", soft_wrap=True)
        if _is_refused(parts, leakage, args.on_error):
            console.print(
                "[bold red]Training would refuse this data." if args.on_error != "strict" else "[bold red]Refused."
            )
            return DataError.exit_code
        if args.write_config:
            _write_config(args, console, parts)
            name = escape(str(args.write_config))
            console.print(f"Config: {name}; train with --config-file {name}", soft_wrap=True)
    return 0


def _inspect(args: argparse.Namespace, temporary: Path) -> list[tuple[str, Inspection]]:
    sources = [("Training data", "train", args.annotations, args.images)]
    if args.val_json:
        sources.append(("Validation data", "val", args.val_json, args.val_images or args.images))
    parts: list[tuple[str, Inspection]] = []
    for name, part, source, images in sources:
        # Annotations in other formats are converted to COCO json files next to the config.
        config = args.write_config
        json_file = config.with_name(f"{config.stem}_{part}.json") if config else temporary / f"{part}.json"
        found = inspect_dataset(
            source,
            images,
            json_file,
            level=args.check_data,
            masks=args.task == "mask-rcnn",
            allow_outside=args.allow_outside,
            perceptual_hashes=bool(args.val_json),
            train=parts[0][1] if parts else None,
        )
        parts.append((name, found))
    return parts


def _is_refused(parts: list[tuple[str, Inspection]], leakage: list[Advice], on_error: str) -> bool:
    return any(found.is_refused(on_error) for _, found in parts) or (on_error == "strict" and bool(leakage))


def _weights(args: argparse.Namespace, console: Console) -> tuple[str, str]:
    """Return `MODEL.WEIGHTS`, and the reason if it is "".

    Default weights that cannot be downloaded must not keep the user from training.
    """
    if args.weights:
        return ("", "--weights none") if args.weights == "none" else (args.weights, "")
    name = f"pvt://{args.model or _MODEL}"
    try:
        locate(name)
    except CheckpointError as error:
        console.print(f"[yellow]The config starts from random weights: {escape(str(error))}", soft_wrap=True)
        return "", f"{name} could not be downloaded"
    return name, ""


def _check_task(args: argparse.Namespace) -> bool:
    """Return whether the data are label maps, and refuse options of the other kind of data."""
    is_semantic = args.task == _SEMANTIC or (args.task is None and is_label_folder(args.annotations, args.images))
    others = ("val_json", "allow_outside") if is_semantic else ("val_labels", "class_names", "ignore_value")
    for name in others:
        if getattr(args, name) not in (None, False):
            option = f"--{name.replace('_', '-')}"
            known = {"val_json": "Use --val-labels.", "val_labels": "Use --val-json."}
            raise ConfigError(
                f"{option} has no effect {'on' if is_semantic else 'without'} label maps (--task {_SEMANTIC}). "
                f"{known.get(name, 'Leave it out.')}"
            )
    if args.ignore_value is not None and not 0 <= args.ignore_value <= 255:
        raise ConfigError(f"--ignore-value {args.ignore_value}: expected 0 to 255.")
    return is_semantic


def _label_folders(args: argparse.Namespace) -> LabelFolders:
    return LabelFolders(
        labels=args.annotations,
        images=args.images,
        val_labels=args.val_labels,
        val_images=args.val_images,
        class_names=args.class_names,
        ignore_value=args.ignore_value,
        level=args.check_data,
        on_error=args.on_error,
    )


def _plan(args: argparse.Namespace, console: Console, task: str) -> tuple[Plan, int]:
    """Return what to train, and the number of images per iteration."""
    on_cpu = (args.device or ("gpu" if torch.cuda.is_available() else "cpu")) == "cpu"
    weights, weights_reason = _weights(args, console)
    plan = Plan(
        task=task,
        model=args.model or _MODEL,
        weights=weights,
        weights_reason=weights_reason,
        on_cpu=on_cpu,
        on_error=args.on_error,
        allow_outside=args.allow_outside,
    )
    return plan, args.batch or _BATCHES["cpu" if on_cpu else "gpu"]


def _write_config(args: argparse.Namespace, console: Console, parts: list[tuple[str, Inspection]]) -> None:
    train, val = parts[0][1], parts[1][1] if len(parts) > 1 else None
    has_masks = all(found.statistics.has_masks for _, found in parts)
    plan, batch = _plan(args, console, args.task or ("mask-rcnn" if has_masks else "retinanet"))
    settings = recommend(
        train.statistics,
        plan.task,
        on_cpu=plan.on_cpu,
        batch=batch,
        pretrained=bool(plan.weights),
        most_objects=max(int(found.statistics.per_image.max()) for _, found in parts),
    )
    write_config(args.write_config, plan, settings, train, val)
