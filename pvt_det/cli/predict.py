"""Detect objects in images, folders and videos with a trained model; write visualizations, crops and COCO json.

A semantic segmentation model writes label maps instead: PNG files with the class index of each pixel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.structures import Instances
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pvt_det.config import load_config
from pvt_det.config.architecture import is_segmentor
from pvt_det.errors import ConfigError, DataError
from pvt_det.inference.files import LABELS_NAME, LabelFiles, OutputFiles, Prediction, PredictionFiles
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.run import Pixels, PredictionRun
from pvt_det.inference.segmentor import Segmentor
from pvt_det.inference.sources import Source, find_sources
from pvt_det.inference.tiling import TiledPredictor
from pvt_det.run_folder import DETECTIONS_NAME, PREDICTION, config_file, require_kind
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.text import did_you_mean

_THRESHOLD, _OVERLAP = 0.5, 0.2
_EXAMPLES = """
examples:
  with the best checkpoint of a run, on a folder and a video:
    %(prog)s photos/ street.mp4 --config-file output/mine --output found
  only two classes, and a crop of each object:
    %(prog)s 'photos/*.jpg' --config-file output/mine --classes cat dog --crops
  an aerial image 20000 pixels wide, in tiles:
    %(prog)s field.tif --config-file output/mine --tile 1024
  label maps from a semantic segmentation model:
    %(prog)s photos/ --config-file output/semantic
  at several scales, merged (test-time augmentation):
    %(prog)s photos/ --config-file output/mine --set TEST.AUG.ENABLED True

Files that cannot be read are reported and skipped; the exit code is then 3.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder, or pattern in quotes")
    parser.add_argument("--config-file", required=True, metavar="RUN", help="run folder or config file")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best checkpoint")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/predict"),
        metavar="DIR",
        help="folder for the results (%(default)s)",
    )
    parser.add_argument(
        "--score-threshold", type=float, metavar="SCORE", help=f"minimum score of objects, 0 to 1 ({_THRESHOLD})"
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    parser.add_argument("--crops", action="store_true", help="also save each object as an image")
    parser.add_argument("--no-pictures", action="store_true", help="write only the results json or the label maps")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="process larger images in tiles of this side")
    parser.add_argument("--overlap", type=float, metavar="SHARE", help=f"overlap of neighboring tiles ({_OVERLAP})")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per batch (%(default)s)")
    parser.add_argument("--device", default="", help="cuda, cuda:1 or cpu (default: the first GPU if available)")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="override a config key"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Predict on the inputs, and write the results.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    require_kind(args.output, PREDICTION)
    sources = find_sources(args.inputs)
    overrides = [word for pair in args.set for word in pair]
    if is_segmentor(load_config(config_file(args.config_file), overrides)):
        faults, summary = _segment(args, overrides, sources)
    else:
        faults, summary = _detect(args, overrides, sources)
    print(summary)
    if faults:
        count = f"{len(faults)} of {len(sources)} files"
        raise DataError(f"{count} could not be read completely. They are listed above.")
    return 0


def _detect(args: argparse.Namespace, overrides: list[str], sources: Sequence[Source]) -> tuple[list[str], str]:
    """Detect objects; return the files that could not be read, and a summary to print."""
    if args.overlap is not None and args.tile is None:
        raise ConfigError("--overlap has no effect without --tile PIXELS. Add --tile, or leave --overlap out.")
    threshold = _THRESHOLD if args.score_threshold is None else args.score_threshold
    predictor = Predictor(
        args.config_file,
        args.weights,
        overrides=overrides,
        score_threshold=threshold,
        batch_size=args.batch_size,
        device=args.device,
    )
    predict: Callable[[Sequence[Pixels]], list[Instances]] = predictor
    if args.tile is not None:
        predict = TiledPredictor(predictor, args.tile, _OVERLAP if args.overlap is None else args.overlap)
    files = PredictionFiles(args.output, predictor.class_names, pictures=not args.no_pictures, crops=args.crops)
    faults = _predict(args, predict, files, sources)
    hint = f"; no object scores above {threshold:g}. Lower --score-threshold to see more"
    counts = f"{_count(files.objects, 'object')} in {_count(files.images, 'image')}"
    summary = f"{counts}: {files.folder / DETECTIONS_NAME}{_outputs(files, sources)}"
    return faults, summary + ("" if files.objects or not files.images else hint)


def _segment(args: argparse.Namespace, overrides: list[str], sources: Sequence[Source]) -> tuple[list[str], str]:
    """Segment the images; return the files that could not be read, and a summary to print."""
    for name in ("score_threshold", "crops", "tile", "overlap"):
        given = getattr(args, name)
        if given is not None and given is not False:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for detectors, but {args.config_file} is a semantic "
                "segmentation model. Leave it out."
            )
    segmentor = Segmentor(
        args.config_file, args.weights, overrides=overrides, batch_size=args.batch_size, device=args.device
    )
    files = LabelFiles(args.output, segmentor.class_names, pictures=not args.no_pictures)
    faults = _predict(args, segmentor, files, sources)
    return faults, f"{_count(files.images, 'label map')}: {files.folder / LABELS_NAME}{_outputs(files, sources)}"


def _predict(
    args: argparse.Namespace,
    predict: Callable[[Sequence[Pixels]], list[Prediction]],
    files: OutputFiles[Prediction],
    sources: Sequence[Source],
) -> list[str]:
    classes = _class_indices(args.classes, files.class_names) if args.classes else None
    with _progress() as progress:
        steps = PredictionRun(predict, files, batch_size=args.batch_size, progress=progress, classes=classes)
        return steps.run(sources)


def _outputs(files: OutputFiles[Prediction], sources: Sequence[Source]) -> str:
    if not files.pictures or not files.images:
        return ""
    videos = {source.is_video for source in sources}
    kinds = "images" if videos == {False} else "videos" if videos == {True} else "images and videos"
    return f", {kinds} in the same folder"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _class_indices(names: Sequence[str], known: Sequence[str]) -> list[int]:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"--classes {name}: unknown class.{hint} The classes of the model are {', '.join(known)}."
            )
    return [known.index(name) for name in names]


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # The progress bar is for terminals only; broken files are reported in any case.
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
