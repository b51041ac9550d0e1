"""Detect objects in images, videos and live streams with a trained model; write visualizations, crops and COCO json.

A semantic segmentation model writes label maps instead: PNG files with the class index of each pixel. A panoptic
segmentation model writes its segments in COCO's panoptic format: PNG files with the segment id of each pixel, and json.
A run that was stopped continues with --resume. Very many images can be divided into parts, which several processes or
machines work on at a time, and which are then merged.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvt_det.errors import ConfigError
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.utils.cli import ArgumentParser, add_public_key
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.paths import make_folder
from pvt_det.utils.text import counted

if TYPE_CHECKING:
    from pvt_det.cli.prediction import Task
    from pvt_det.inference.journal import Journal
    from pvt_det.inference.sources import Source

OVERLAP = 0.2
_EXAMPLES = """
examples:
  with the best checkpoint of a run, on a folder and a video:
    %(prog)s photos/ street.mp4 --config-file output/mine --output found
  only two classes, and a crop of each object:
    %(prog)s 'photos/*.jpg' --config-file output/mine --classes cat dog --crops
  an aerial image 20000 pixels wide, in tiles:
    %(prog)s field.tif --config-file output/mine --tile 1024
  the first camera, until Ctrl-C:
    %(prog)s 0 --config-file output/mine
  a stream, with numbered objects, at every fifth frame:
    %(prog)s rtsp://camera/1 --config-file output/mine --track --stride 5
  with an exported file, in the number format that is fastest on recent CPUs:
    %(prog)s photos/ --config-file mine_openvino --set TEST.PRECISION bf16
  labels to correct in LabelMe:
    %(prog)s photos/ --config-file output/mine --format labelme
  label maps from a semantic segmentation model:
    %(prog)s photos/ --config-file output/semantic
  segments from a panoptic segmentation model, in COCO's panoptic format:
    %(prog)s photos/ --config-file output/panoptic
  at several scales, merged (test-time augmentation):
    %(prog)s photos/ --config-file output/mine --set TEST.AUG.ENABLED True
  in 100 parts, by as many of these commands at a time as you like, and merged at the end:
    %(prog)s photos/ --config-file output/mine --output found --no-pictures --parts 100
    %(prog)s --merge found
  the third of 100 parts, for example in an array of jobs:
    %(prog)s photos/ --config-file output/mine --output found --no-pictures --part 3/100

Inputs that cannot be read are reported and skipped; the exit code is then 3.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 6 a process was killed, 75 stopped and
resumable
"""


class _Parser(ArgumentParser):
    """A parser that requires inputs and a model, unless parts are merged."""

    def parse_words(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse options and positional arguments in any order.

        Args:
            argv: The arguments, without the program's name. If None, those of the current process.
        """
        args = super().parse_words(argv)
        if args.merge is None:
            given = {"INPUT": args.inputs, "--config-file": args.config_file}
            if missing := [name for name, value in given.items() if not value]:
                self.error(f"the following arguments are required: {', '.join(missing)}")
        elif unused := [
            action.option_strings[0] if action.option_strings else str(action.metavar)
            for action in self._actions
            if action.dest not in ("merge", "quiet", "help") and getattr(args, action.dest) != action.default
        ]:
            self.error(f"argument {unused[0]}: has no effect with --merge")
        # Parts continue in any case.
        args.resume = args.resume or args.part is not None or args.parts is not None
        return args


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = _Parser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="*",
        default=[],
        metavar="INPUT",
        help="image, video, folder, pattern, URL, or number of a camera",
    )
    parser.add_argument("--config-file", default="", metavar="RUN", help="run folder, config file or exported file")
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
    parser.add_argument("--no-pictures", action="store_true", help="write only json, label maps and segment ids")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=("coco", "labelme", "yolo"),
        metavar="NAME",
        help="formats of the detections: labelme, yolo; coco is always written",
    )
    parser.add_argument("--track", action="store_true", help="number the objects of videos from frame to frame")
    parser.add_argument("--stride", type=int, metavar="N", help="process every Nth frame of videos (1)")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="process larger images in tiles of this side")
    parser.add_argument("--overlap", type=float, metavar="SHARE", help=f"overlap of neighboring tiles ({OVERLAP})")
    parser.add_argument("--quiet", action="store_true", help="print no line for each image")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per batch (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished prediction in the output folder")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--part", type=_part, metavar="K/N", help="predict on part K of N only, K from 1 to N")
    parts.add_argument(
        "--parts",
        type=_count,
        metavar="N",
        help="predict on each of N parts that no other process has claimed",
    )
    parts.add_argument("--merge", type=Path, metavar="DIR", help="merge the parts in an output folder, and end")
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
    if args.merge is not None:
        from pvt_det.cli.prediction_parts import merge

        return merge(args)
    from pvt_det.cli.prediction import detect, segment, segment_panoptic
    from pvt_det.inference.base import predictor_name
    from pvt_det.inference.sources import find_sources
    from pvt_det.run_folder import PREDICTION, config_file, require_kind
    from pvt_det.runtimes.metadata import load_model_config

    require_kind(args.output, PREDICTION)
    sources = find_sources(args.inputs)
    _check_video_options(args, any(source.is_video for source in sources))
    overrides = [word for pair in args.set for word in pair]
    cfg = load_model_config(config_file(args.config_file), overrides, training=False)
    kinds = {"Predictor": detect, "Segmentor": segment, "PanopticPredictor": segment_panoptic}
    load = partial(kinds[predictor_name(cfg)], args, overrides)
    make_folder(args.output)
    if args.part or args.parts:
        from pvt_det.cli.prediction_parts import predict_in_parts

        return predict_in_parts(args, load, sources)
    return _predict_all(args, load, sources)


def _predict_all(args: argparse.Namespace, load: Callable[[], Task[Any]], sources: Sequence[Source]) -> int:
    from pvt_det.cli.prediction import predict_on, unreadable
    from pvt_det.inference.sources import find_sources
    from pvt_det.run_folder import PARTS_FOLDER

    if (args.output / PARTS_FOLDER).is_dir():
        raise ConfigError(
            f"{args.output} contains the parts of a divided prediction. Merge them with --merge {args.output}, "
            f"continue with --parts, delete {args.output / PARTS_FOLDER} to start again, or choose another folder with "
            "--output."
        )
    with FolderLock(args.output):
        journal = _open_journal(args)
        if journal.sources:
            sources = find_sources(args.inputs, journal.sources)
        task = load()
        done = predict_on(args, task, sources, journal)
    print(task.count(journal) + task.summarize(done.files, sources))
    if done.errors:
        are_files = all(isinstance(source.path, Path) for source in sources)
        raise unreadable(len(done.errors), len(sources), "files" if are_files else "inputs")
    return 0


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a part from 1, such as 1/100 or 100/100")
    return number, count


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of parts, such as 100")
    return int(text)


def _check_video_options(args: argparse.Namespace, has_video: bool) -> None:
    if args.stride is not None and args.stride < 1:
        raise ConfigError(f"--stride {args.stride}: expected at least 1.")
    given = [f"--{name}" for name in ("track", "stride") if getattr(args, name)]
    if given and not has_video:
        raise ConfigError(f"{given[0]} is for videos and streams, but the inputs are images. Leave it out.")


def _open_journal(args: argparse.Namespace) -> Journal:
    """Return what an unfinished run has written to the output folder, if anything."""
    from pvt_det.inference.journal import Journal

    journal = Journal(args.output)
    if journal.images and not args.resume:
        raise ConfigError(
            f"{args.output} contains an unfinished prediction of {counted(journal.images, 'image')}. Continue it with "
            f"--resume, delete {journal.path} to start again, or choose another folder with --output."
        )
    if args.resume:
        found = (
            f"continuing after {counted(journal.images, 'image')}"
            if journal.images
            else "nothing to resume, so starting"
        )
        print(f"{args.output}: {found}")
    return journal
