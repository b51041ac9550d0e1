"""Detect objects in images, videos and live streams with a trained model; write visualizations, crops and COCO json.

A semantic segmentation model writes label maps instead: PNG files with the class index of each pixel. A panoptic
segmentation model writes its segments in COCO's panoptic format: PNG files with the segment id of each pixel, and json.
A run that was stopped continues with --resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_det.errors import ConfigError, DataError
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.utils.cli import ArgumentParser, add_public_key
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.paths import make_folder
from pvt_det.utils.text import counted

if TYPE_CHECKING:
    from pvt_det.inference.part import Part

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

Inputs that cannot be read are reported and skipped; the exit code is then 3.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 numeric, 6 a process was killed, 75 stopped and
resumable
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder, pattern, URL, or number of a camera"
    )
    parser.add_argument("--config-file", required=True, metavar="RUN", help="run folder, config file or exported file")
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
    predict = kinds[predictor_name(cfg)]
    make_folder(args.output)
    with FolderLock(args.output):
        part = _open_part(args)
        if part.sources:
            sources = find_sources(args.inputs, part.sources)
        faults, summary = predict(args, overrides, sources, part)
    print(summary)
    if faults:
        are_files = all(isinstance(source.path, Path) for source in sources)
        count = f"{len(faults)} of {len(sources)} {'files' if are_files else 'inputs'}"
        raise DataError(f"{count} could not be read completely. Each is named above, after 'skipped:'.")
    return 0


def _check_video_options(args: argparse.Namespace, has_video: bool) -> None:
    if args.stride is not None and args.stride < 1:
        raise ConfigError(f"--stride {args.stride}: expected at least 1.")
    given = [f"--{name}" for name in ("track", "stride") if getattr(args, name)]
    if given and not has_video:
        raise ConfigError(f"{given[0]} is for videos and streams, but the inputs are images. Leave it out.")


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
