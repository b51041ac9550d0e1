"""Write a trained model as ONNX or as a torch.export program, checked against the model on real images."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from pvt_det.errors import ConfigError
from pvt_det.export.api import Report, export, load_classifier, load_detector
from pvt_det.export.files import Kind, require_compiler, require_onnx
from pvt_det.inference.sources import find_sources
from pvt_det.run_folder import named_weights
from pvt_det.utils.cli import ArgumentParser
from pvt_det.utils.paths import make_parent_folder

_SIDE = 224
_EXAMPLES = """
examples:
  the best weights of a run, as ONNX:
    %(prog)s --config-file output/mine --output mine.onnx
  as a torch.export program, and compiled for this machine by AOTInductor (needs a C++ compiler):
    %(prog)s --config-file output/mine --output mine.pt2
    %(prog)s --config-file output/mine --output mine.pt2 --compile
  a classifier:
    %(prog)s --classifier pvt_tiny --weights pvt_tiny.pth --images photos/ --output pvt_tiny.onnx
  use it, with no more than numpy, OpenCV and onnxruntime:
    python tools/run_onnx.py mine.onnx photo.jpg

the file takes   image N x 3 x H x W, uint8, RGB; any N, H and W; of one size in a batch
detectors give   boxes D x 4 (x0, y0, x1, y1; pixels of the image given), scores D, labels D, images D (which of the
                 batch), and with masks D x 28 x 28 (probabilities in the box)
segmentors give  labels N x H x W and their probabilities, scores N x H x W
classifiers give scores N x K, probabilities
Normalising, padding and non-maximum suppression are inside; resizing to the training's size is not.

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 the file is not the same function as the model
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config-file", metavar="RUN", help="a run's output folder, or a config file")
    which.add_argument("--classifier", metavar="NAME", help="a classifier, such as pvt_tiny")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument("--compile", action="store_true", help="compile a .pt2 for this machine's processor")
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="IMAGE", help="to check on (default: the run's validation images)"
    )
    parser.add_argument("--side", type=int, metavar="PIXELS", help=f"of a classifier's images ({_SIDE})")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="a key of the config"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Export; gives the exit code."""
    _refuse_idle(args)
    kind = _kind(args)
    make_parent_folder(args.output)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    sources = find_sources(args.images)
    if videos := [str(source.path) for source in sources if source.is_video]:
        raise ConfigError(f"--images {', '.join(videos)}: the check is on images; leave videos out.")
    images = [source.path for source in sources]
    if args.classifier:
        if not args.weights:
            raise ConfigError("--classifier needs the weights of a trained one: add --weights FILE.")
        subject = load_classifier(args.classifier, args.weights, args.side or _SIDE)
    else:
        words = [word for pair in args.set for word in pair]
        subject = load_detector(args.config_file, str(named_weights(args.weights, words)), words, kind)
    report = export(subject, args.output, kind, images)
    _say(args.output, subject.name, subject.graph.outputs, report)
    return 0


def _refuse_idle(args: argparse.Namespace) -> None:
    """Refuse options that would change nothing."""
    if args.classifier and args.set:
        raise ConfigError("--set is for --config-file: a classifier has no config. Leave it out.")
    if args.config_file and args.side is not None:
        raise ConfigError("--side is for --classifier: a detector's images have the sizes of INPUT.MIN_SIZE_TEST.")
    if args.side is not None and args.side < 32:
        raise ConfigError(f"--side {args.side}: expected 32 pixels or more.")


def _kind(args: argparse.Namespace) -> Kind:
    """The format, and whether what it needs is there: the model is large, its tracing slow."""
    suffix = args.output.suffix
    if suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"--output {args.output}: expected a name that ends in .onnx or .pt2.")
    if args.compile and suffix == ".onnx":
        raise ConfigError("--compile is for .pt2 files: an ONNX runtime compiles for itself.")
    if suffix == ".onnx":
        require_onnx()
        return "onnx"
    if args.compile:
        require_compiler()
    return "compiled" if args.compile else "program"


def _say(path: Path, name: str, outputs: Sequence[str], report: Report) -> None:
    height, width = report.size
    print(f"{path}: {name}, {path.stat().st_size / 2**20:.1f} MiB; gives {', '.join(outputs)}")
    print(f"same as the model on {report.parity}")
    print(
        f"{width}x{height} pixels on the CPU, {torch.get_num_threads()} threads: {report.eager_ms:.0f} ms before, "
        f"{report.exported_ms:.0f} ms exported (medians)"
    )
