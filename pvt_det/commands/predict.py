"""Find objects in images, folders and videos with a trained detector: pictures, crops and COCO's results json."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pvt_det.engine.cli import ArgumentParser
from pvt_det.engine.prediction.files import RESULTS_NAME, PredictionFiles
from pvt_det.engine.prediction.run import Detect, PredictionRun
from pvt_det.engine.prediction.sources import find_sources
from pvt_det.engine.prediction.tiling import TiledPredictor
from pvt_det.engine.predictor import Predictor
from pvt_det.errors import ConfigError, DataError

_EXAMPLES = """
examples:
  with the best weights of a run, in a folder and a video:
    %(prog)s photos/ street.mp4 --config-file output/mine --output found
  two classes, each object cut out as well:
    %(prog)s 'photos/*.jpg' --config-file output/mine --classes cat dog --crops
  an aerial image of 20000 pixels, in tiles:
    %(prog)s field.tif --config-file output/mine --tile 1024
  at several scales, merged (test-time augmentation):
    %(prog)s photos/ --config-file output/mine --set TEST.AUG.ENABLED True

A file that cannot be read is named and the others go on; the exit code is then 3.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video, folder, or pattern in quotes")
    parser.add_argument("--config-file", required=True, metavar="RUN", help="a run's output folder, or a config file")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best")
    parser.add_argument("--output", type=Path, default=Path("output/predict"), metavar="DIR", help="%(default)s")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="SCORE", help="least score, 0 to 1 (%(default)s)"
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--crops", action="store_true", help="also save every object by itself")
    parser.add_argument("--no-pictures", action="store_true", help="save the results json alone")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="look at larger images in tiles of this side")
    parser.add_argument(
        "--overlap", type=float, default=0.2, metavar="SHARE", help="of neighbouring tiles (%(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at a time (%(default)s)")
    parser.add_argument("--device", default="", help="cuda, cuda:1, cpu (default: the first GPU, if there is one)")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="a key of the config"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Predict; gives the exit code."""
    sources = find_sources(args.inputs)
    predictor = Predictor(
        args.config_file,
        args.weights,
        overrides=[word for pair in args.set for word in pair],
        score_threshold=args.score_threshold,
        batch_size=args.batch_size,
        device=args.device,
    )
    detect: Detect = TiledPredictor(predictor, args.tile, args.overlap) if args.tile is not None else predictor
    classes = _numbers(args.classes, predictor.class_names) if args.classes else None
    files = PredictionFiles(args.output, predictor.class_names, pictures=not args.no_pictures, crops=args.crops)
    with _progress() as progress:
        steps = PredictionRun(detect, files, batch_size=args.batch_size, progress=progress, classes=classes)
        faults = steps.run(sources)
    print(_summary(files, args.score_threshold))
    if faults:
        raise DataError(f"{len(faults)} of {len(sources)} files could not be read; they are named above.")
    return 0


def _summary(files: PredictionFiles, least: float) -> str:
    shown = ", pictures beside it" if files.pictures and files.images else ""
    counts = f"{_count(files.objects, 'object')} in {_count(files.images, 'image')}"
    hint = "" if files.objects or not files.images else f"; none scores {least:g}: a lower --score-threshold shows more"
    return f"{counts}: {files.folder / RESULTS_NAME}{shown}{hint}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _numbers(names: Sequence[str], known: Sequence[str]) -> list[int]:
    for name in names:
        if name not in known:
            spelled = {each.lower(): each for each in known}
            near = difflib.get_close_matches(name.lower(), spelled, n=1)
            hint = f"Did you mean {spelled[near[0]]!r}? " if near else ""
            raise ConfigError(f"--classes {name}: the model has no such class. {hint}It has {', '.join(known)}.")
    return [known.index(name) for name in names]


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # What is broken is told in any case, the bar to those who watch.
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
