"""Detect objects in images, folders and videos with a trained model; write visualizations, crops and COCO json.

A semantic segmentation model writes label maps instead: PNG files with the class index of each pixel.
A run that was stopped continues with --resume.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_det.errors import ConfigError, DataError
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.utils.cli import ArgumentParser, add_public_key
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.paths import make_folder
from pvt_det.utils.text import counted, did_you_mean

if TYPE_CHECKING:
    from detectron2.structures import Instances
    from rich.progress import Progress

    from pvt_det.inference.files import OutputFiles, Prediction
    from pvt_det.inference.part import Part
    from pvt_det.inference.run import Pixels
    from pvt_det.inference.sources import Source

_OVERLAP = 0.2
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
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 75 stopped and resumable
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
        "--score-threshold", type=float, metavar="SCORE", help=f"minimum score of objects, 0 to 1 ({SCORE_THRESHOLD})"
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="keep only these classes")
    parser.add_argument("--crops", action="store_true", help="also save each object as an image")
    parser.add_argument("--no-pictures", action="store_true", help="write only the results json or the label maps")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="process larger images in tiles of this side")
    parser.add_argument("--overlap", type=float, metavar="SHARE", help=f"overlap of neighboring tiles ({_OVERLAP})")
    parser.add_argument("--quiet", action="store_true", help="print no line for each image")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per batch (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished prediction in the output folder")
    parser.add_argument("--device", default="", help="cuda, cuda:1, mps or cpu (default: the first GPU if available)")
    add_public_key(parser)
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
    from pvt_det.config import load_config
    from pvt_det.config.architecture import is_segmentor
    from pvt_det.inference.sources import find_sources
    from pvt_det.run_folder import PREDICTION, config_file, require_kind

    require_kind(args.output, PREDICTION)
    sources = find_sources(args.inputs)
    overrides = [word for pair in args.set for word in pair]
    cfg = load_config(config_file(args.config_file), overrides, training=False)
    predict = _segment if is_segmentor(cfg) else _detect
    make_folder(args.output)
    with FolderLock(args.output):
        part = _open_part(args)
        if part.sources:
            sources = find_sources(args.inputs, part.sources)
        faults, summary = predict(args, overrides, sources, part)
    print(summary)
    if faults:
        count = f"{len(faults)} of {len(sources)} files"
        raise DataError(f"{count} could not be read completely. Each is named above, after 'skipped:'.")
    return 0


def _open_part(args: argparse.Namespace) -> Part:
    """Return what an unfinished run has written to the output folder, if anything."""
    from pvt_det.inference.part import Part

    part = Part(args.output)
    if part.images and not args.resume:
        raise ConfigError(
            f"{args.output} contains an unfinished prediction of {counted(part.images, 'image')}. Continue it with "
            f"--resume, delete {part.path} to start again, or choose another folder with --output."
        )
    if args.resume:
        found = f"continuing after {counted(part.images, 'image')}" if part.images else "nothing to resume, so starting"
        print(f"{args.output}: {found}")
    return part


def _detect(
    args: argparse.Namespace, overrides: list[str], sources: Sequence[Source], part: Part
) -> tuple[list[str], str]:
    """Detect objects; return the files that could not be read, and a summary to print."""
    from pvt_det.inference.files import PredictionFiles
    from pvt_det.inference.predictor import Predictor
    from pvt_det.inference.tiling import TiledPredictor
    from pvt_det.run_folder import DETECTIONS_NAME

    if args.overlap is not None and args.tile is None:
        raise ConfigError("--overlap has no effect without --tile PIXELS. Add --tile, or leave --overlap out.")
    predictor = Predictor(
        args.config_file,
        args.weights,
        overrides=overrides,
        score_threshold=SCORE_THRESHOLD if args.score_threshold is None else args.score_threshold,
        batch_size=args.batch_size,
        device=args.device,
        public_key=args.public_key,
    )
    predict: Callable[[Sequence[Pixels]], Sequence[Instances]] = predictor
    if args.tile is not None:
        predict = TiledPredictor(predictor, args.tile, _OVERLAP if args.overlap is None else args.overlap)
    settings = {"model": predictor.fingerprint(), **_settings(args, "classes", "tile", "overlap")}
    files = PredictionFiles(
        part, predictor.class_names, pictures=not args.no_pictures, crops=args.crops, settings=settings
    )
    faults = _predict(args, predict, files, sources)
    hint = f"; no object scores above {predictor.score_threshold:g}. Lower --score-threshold to see more"
    counts = f"{counted(part.objects, 'object')} in {counted(part.images, 'image')}"
    summary = f"{counts}: {files.folder / DETECTIONS_NAME}{files.drawn(sources)}"
    return faults, summary + ("" if part.objects or not part.images else hint)


def _segment(
    args: argparse.Namespace, overrides: list[str], sources: Sequence[Source], part: Part
) -> tuple[list[str], str]:
    """Segment the images; return the files that could not be read, and a summary to print."""
    from pvt_det.inference.files import LABELS_NAME, LabelFiles
    from pvt_det.inference.segmentor import Segmentor

    for name in ("score_threshold", "crops", "tile", "overlap"):
        given = getattr(args, name)
        if given is not None and given is not False:
            raise ConfigError(
                f"--{name.replace('_', '-')} is for detectors, but {args.config_file} is a semantic "
                "segmentation model. Leave it out."
            )
    segmentor = Segmentor(
        args.config_file,
        args.weights,
        overrides=overrides,
        batch_size=args.batch_size,
        device=args.device,
        public_key=args.public_key,
    )
    settings = {"model": segmentor.fingerprint(), **_settings(args, "classes")}
    files = LabelFiles(part, segmentor.class_names, pictures=not args.no_pictures, settings=settings)
    faults = _predict(args, segmentor, files, sources)
    return faults, f"{counted(part.images, 'label map')}: {files.folder / LABELS_NAME}{files.drawn(sources)}"


def _predict(
    args: argparse.Namespace,
    predict: Callable[[Sequence[Pixels]], Sequence[Prediction]],
    files: OutputFiles[Prediction],
    sources: Sequence[Source],
) -> list[str]:
    from pvt_det.inference.run import PredictionRun

    classes = _class_indices(args.classes, files.class_names) if args.classes else None
    with _progress() as progress:
        steps = PredictionRun(
            predict,
            files,
            batch_size=args.batch_size,
            progress=progress,
            classes=classes,
            quiet=args.quiet,
            resume_command=args.resume_command,
        )
        return steps.run(sources)


def _settings(args: argparse.Namespace, *names: str) -> dict[str, object]:
    return {f"--{name}": getattr(args, name) for name in names}


def _class_indices(names: Sequence[str], known: Sequence[str]) -> list[int]:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(
                f"--classes {name}: unknown class.{hint} The classes of the model are {', '.join(known)}."
            )
    return [known.index(name) for name in names]


def _progress() -> Progress:
    from pvt_det.utils.console import Console
    from pvt_det.utils.progress import Bars

    console = Console(stderr=True)
    return Bars(console, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
