"""Check a data set before training, show statistics and images, and write a config to train on it.

Examples:
    %(prog)s train.json images/ --val-json val.json --val-images images/ --html report.html --write-config mine.yaml
    %(prog)s VOC2007/ --write-config mine.yaml
    %(prog)s data.yaml --write-config baseline.yaml --model R_18

Reads COCO json, CVAT xml, folders of Pascal VOC xml or YOLO txt files, lists of images in them such as
ImageSets/Main/train.txt, the data.yaml of YOLO, and the folder of a whole data set. Annotations in other formats are
converted to COCO json. Problems are fixed, dropped or refused as in training.

exit codes: 0 training accepts the data, 2 configuration, 3 training refuses the data, or --strict finds anything to
report
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

import torch
from rich.markup import escape

from pvt_det.config import load_config
from pvt_det.config.table import choices
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.inspection.backbones import Backbone, find_backbone
from pvt_det.inspection.config_file import Plan, check_place, write_config
from pvt_det.inspection.inspect import Advice, Inspection, find_leakage, inspect_dataset
from pvt_det.inspection.page import inspection_page
from pvt_det.inspection.places import find_places
from pvt_det.inspection.recommend import TASKS, recommend
from pvt_det.inspection.terminal import Written, show, show_advice
from pvt_det.run_folder import config_file
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.console import Console
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_parent_folder
from pvt_det.weights.source import locate

_BATCHES = {"cpu": 4, "gpu": 16}


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "annotations", type=Path, metavar="ANNOTATIONS", help="annotations, or the folder of the whole data set"
    )
    parser.add_argument(
        "images", type=Path, nargs="?", metavar="IMAGES", help="folder of the images (default: found from ANNOTATIONS)"
    )
    parser.add_argument(
        "--val-json",
        type=Path,
        metavar="FILE",
        help="annotations to evaluate on, in any of these formats (default: those of a whole data set, if any)",
    )
    parser.add_argument("--val-images", type=Path, metavar="DIR", help="images of --val-json (default: IMAGES)")
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
        "--write-json",
        type=Path,
        metavar="FILE",
        help="write the annotations as COCO json to this file, and those of --val-json beside it",
    )
    parser.add_argument(
        "--classes-of", metavar="RUN", help="run folder or config whose classes the data must have, for `pvt-det eval`"
    )
    config = parser.add_argument_group("config for training")
    config.add_argument("--write-config", type=Path, metavar="FILE", help="write the config to this file")
    config.add_argument(
        "--task", choices=TASKS, help="default: mask-rcnn if every object has a mask, otherwise retinanet"
    )
    config.add_argument(
        "--model",
        metavar="NAME",
        help="backbone, such as pvt_small or R_50, or a config, such as retinanet_R_50; the recipe is the same for all "
        "(default: pvt_tiny)",
    )
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
    if args.val_images and not args.val_json:
        raise ConfigError("--val-images needs --val-json. Add the annotations of these images.")
    if args.batch is not None and args.batch < 1:
        raise ConfigError(f"--batch {args.batch}: expected 1 or more.")
    unused = [f"--{name}" for name in ("model", "weights", "device", "batch") if getattr(args, name) is not None]
    if unused and not args.write_config:
        raise ConfigError(f"{', '.join(unused)} has no effect without --write-config FILE. Add it, or leave them out.")
    backbone, task = find_backbone(args.model or "")
    if task and args.task not in (None, task):
        raise ConfigError(f"--model {args.model} is a config for --task {task}, but --task is {args.task}.")
    args.task = args.task or task or None
    if args.write_config:
        check_place(args.write_config)
    if args.write_json and args.write_json.exists():
        raise ConfigError(
            f"--write-json {args.write_json}: the file already exists. Choose another name, or remove it."
        )
    for file in filter(None, (args.html, args.write_json)):
        make_parent_folder(file)
    console = Console()
    with tempfile.TemporaryDirectory() as temporary, console.status("Reading the data …"):
        parts = _inspect(args, Path(temporary))
        leakage = find_leakage(parts[0][1], parts[1][1]) if len(parts) > 1 else []
        for name, found in parts:
            show(console, name, found, args.on_error)
        show_advice(console, leakage)
        written = Written()
        if args.html:
            page = inspection_page(f"Data set {args.annotations}", parts, leakage, args.on_error)
            write_atomically(args.html, page)
            written.add(args.html, "page with pictures: open it in a browser")
        if _is_refused(parts, leakage, args.on_error):
            written.show(console)
            console.print(f"[bold red]{escape(_refusal(parts, args.on_error))}", soft_wrap=True)
            return DataError.exit_code
        parts = [(name, found.saved_as(_json_file(args, number))) for number, (name, found) in enumerate(parts)]
        for name, found in parts:
            if found.is_converted and _json_file(args, 0):
                written.add(found.json_file, f"{name.lower()} as COCO JSON")
        if args.write_config:
            _write_config(args, console, parts, backbone)
            written.add(args.write_config, "config for this data")
        written.show(console)
        if args.write_config:
            command = shlex.join(["pvt-det", "train", "--config-file", str(args.write_config)])
            console.print(f"Train with: {escape(command)}", soft_wrap=True)
    return 0


def _inspect(args: argparse.Namespace, temporary: Path) -> list[tuple[str, Inspection]]:
    places = find_places(args.annotations, args.images, args.val_json, args.val_images)
    classes, classes_of = _classes_of(args.classes_of), args.classes_of
    parts: list[tuple[str, Inspection]] = []
    for number, (name, place) in enumerate(zip(("Training data", "Validation data"), places, strict=False)):
        found = inspect_dataset(
            place.annotations,
            place.images,
            temporary / f"{number}.json",
            level=args.check_data,
            masks=args.task == "mask-rcnn",
            allow_outside=args.allow_outside,
            perceptual_hashes=len(places) > 1,
            classes=classes,
            classes_of=classes_of,
            class_file=place.class_file,
        )
        if not classes:
            classes, classes_of = found.data.class_names, "the training data"
        parts.append((name, found))
    if args.write_json and not any(found.is_converted for _, found in parts):
        raise ConfigError(f"--write-json has no effect: {places[0].annotations} is COCO JSON already. Leave it out.")
    return parts


def _classes_of(run: str | None) -> list[str]:
    if run is None:
        return []
    path = config_file(run)
    if not (names := load_config(path, training=False).DATASETS.CLASS_NAMES):
        raise ConfigError(
            f"--classes-of {run}: {path} has no DATASETS.CLASS_NAMES. Give the folder of a trained model."
        )
    return list(names)


def _json_file(args: argparse.Namespace, number: int) -> Path | None:
    """Return the file for converted annotations: 0 for the training data, 1 for the validation data."""
    if file := args.write_json:
        return file if number == 0 else file.with_stem(f"{file.stem}_val")
    if config := args.write_config:
        return config.with_name(f"{config.stem}_{('train', 'val')[number]}.json")
    return None


def _refusal(parts: list[tuple[str, Inspection]], on_error: str) -> str:
    if on_error == "strict":
        return "Refused."
    if any(found.is_refused("skip") for _, found in parts):
        return "Training would refuse this data. Correct it."
    return (
        "Training would refuse this data. Correct it, or leave the broken parts out with --on-error skip. A config "
        "written with it leaves them out in training."
    )


def _is_refused(parts: list[tuple[str, Inspection]], leakage: list[Advice], on_error: str) -> bool:
    return any(found.is_refused(on_error) for _, found in parts) or (on_error == "strict" and bool(leakage))


def _weights(args: argparse.Namespace, console: Console, backbone: Backbone) -> tuple[str, str]:
    """Return `MODEL.WEIGHTS`, and the reason if it is "".

    Default weights that cannot be downloaded must not keep the user from training.
    """
    if args.weights:
        return ("", "--weights none") if args.weights == "none" else (args.weights, "")
    name = backbone.weights
    try:
        locate(name)
    except CheckpointError as error:
        console.print(f"[yellow]The config starts from random weights: {escape(str(error))}", soft_wrap=True)
        return "", f"{name} could not be downloaded"
    return name, ""


def _write_config(
    args: argparse.Namespace, console: Console, parts: list[tuple[str, Inspection]], backbone: Backbone
) -> None:
    train, val = parts[0][1], parts[1][1] if len(parts) > 1 else None
    on_cpu = (args.device or ("gpu" if torch.cuda.is_available() else "cpu")) == "cpu"
    weights, weights_reason = _weights(args, console, backbone)
    plan = Plan(
        task=args.task or ("mask-rcnn" if all(found.statistics.has_masks for _, found in parts) else "retinanet"),
        backbone=backbone,
        weights=weights,
        weights_reason=weights_reason,
        on_cpu=on_cpu,
        on_error=args.on_error,
        allow_outside=args.allow_outside,
    )
    settings = recommend(
        train.statistics,
        plan.task,
        on_cpu=on_cpu,
        batch=args.batch or _BATCHES["cpu" if on_cpu else "gpu"],
        pretrained=bool(plan.weights),
        most_objects=max(int(found.statistics.per_image.max()) for _, found in parts),
    )
    write_config(args.write_config, plan, settings, train, val)
