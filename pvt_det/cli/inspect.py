"""Check a data set before training, show statistics and images, and write a config to train on it.

Examples:
    %(prog)s train.json images/ --val-json val.json --val-images images/ --html report.html --write-config mine.yaml
    %(prog)s VOC2007/ --write-config mine.yaml
    %(prog)s all.json images/ --val-fraction 0.2 --seed 0 --write-config mine.yaml
    %(prog)s data.yaml --write-config baseline.yaml --model R_18
    %(prog)s labels/ images/ --val-labels val_labels/ --val-images val/ --class-names names.txt --write-config mine.yaml

Reads COCO json, CVAT xml, folders of Pascal VOC xml or YOLO txt files, lists of images in them such as
ImageSets/Main/train.txt, the data.yaml of YOLO, and the folder of a whole data set. Annotations in other formats are
converted to COCO json. For semantic segmentation, a folder of label maps: PNG files with the names of the images.
Problems are fixed, dropped or refused as in training.

exit codes: 0 training accepts the data, 2 configuration, 3 training refuses the data, or --strict finds anything to
report
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path

from pvt_det.config.table import choices
from pvt_det.errors import ConfigError, DataError
from pvt_det.inspection.request import BATCHES, Request, check_place
from pvt_det.inspection.tasks import SEMANTIC, TASKS
from pvt_det.utils.cli import ArgumentParser


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "annotations",
        type=Path,
        metavar="ANNOTATIONS",
        help="annotations, the folder of the whole data set, or a folder of label maps",
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
    parser.add_argument("--val-labels", type=Path, metavar="DIR", help="label maps to evaluate on")
    parser.add_argument(
        "--val-images", type=Path, metavar="DIR", help="images of --val-json or --val-labels (default: IMAGES)"
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="set this share of the images aside to evaluate on, such as 0.2; near duplicates stay on one side",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the choice of --val-fraction (default: 0)")
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
        help="write the annotations as COCO json to this file, and those to evaluate on beside it",
    )
    parser.add_argument(
        "--classes-of", metavar="RUN", help="run folder or config whose classes the data must have, for `pvt-det eval`"
    )
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE", help="class names of label maps: text with one per line, or JSON"
    )
    parser.add_argument(
        "--ignore-value", type=int, metavar="N", help="value of void in label maps (default: found from the values)"
    )
    parser.add_argument(
        "--task",
        choices=(*TASKS, SEMANTIC),
        help=f"default: {SEMANTIC} for label maps, mask-rcnn if every object has a mask, otherwise retinanet",
    )
    config = parser.add_argument_group("config for training")
    config.add_argument("--write-config", type=_new_config, metavar="FILE", help="write the config to this file")
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
        "--device", choices=tuple(BATCHES), help="device to train on (default: a GPU if this machine has one)"
    )
    config.add_argument("--batch", type=int, metavar="N", help="images per iteration (default: 4 on a CPU, 16 on GPUs)")
    return parser


def _new_config(text: str) -> Path:
    """Check the file's name with the options, because loading the libraries takes long on a busy machine."""
    try:
        check_place(Path(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def run(args: argparse.Namespace) -> int:
    """Inspect the data, print what was found, and write the page and the config with `--html` and `--write-config`.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det.inspection.run import inspect
    from pvt_det.inspection.show import show_end, show_found
    from pvt_det.utils.console import Console

    request = Request(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Request)})
    console = Console()
    with console.status("Inspecting the data …"):
        result = inspect(request, partial(show_found, console))
    show_end(console, result, request.write_config)
    return 0 if result.is_accepted else DataError.exit_code
