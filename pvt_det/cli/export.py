"""Export a trained model to ONNX, OpenVINO or a torch.export program, and check the file on real images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_det.errors import ConfigError
from pvt_det.utils.cli import ArgumentParser, add_public_key
from pvt_det.utils.text import counted

if TYPE_CHECKING:
    from pvt_det.deployment.api import Report
    from pvt_det.deployment.int8_export import Int8Report
    from pvt_det.deployment.run import Int8Request

_FORMATS = ("onnx", "torch", "openvino")
_EXAMPLES = """
examples:
  the best checkpoint of a run, as ONNX:
    %(prog)s output/mine --output mine.onnx
  for OpenVINO, the fastest on most CPUs (a folder), and as a torch.export program:
    %(prog)s output/mine --output mine_openvino
    %(prog)s output/mine --output mine.pt2
  the same in int8, if it costs at most half a point of AP on the run's validation data:
    %(prog)s output/mine --output mine_int8_openvino --int8 --calibrate train_images/ --max-drop 0.5
  a classifier:
    %(prog)s --classifier pvt_tiny --weights pvt_tiny.pth --images photos/ --output pvt_tiny.onnx
  use the file like a run:
    pvt-det predict photos/ --config-file mine.onnx
    pvt-det eval mine.onnx --val-json val.json --val-images images/
  run the file, with only numpy, OpenCV and onnxruntime installed:
    python tools/run_onnx.py mine.onnx photo.jpg

input:               image N x 3 x H x W, uint8, RGB; any N, H and W; one size per batch
detector outputs:    boxes D x 4 (x0, y0, x1, y1 in pixels of the input), scores D, labels D, images D (index in the
                     batch), and for models with masks: masks D x 28 x 28 (probabilities in the box)
segmentor outputs:   labels N x H x W, scores N x H x W (their probabilities), logits N x K x h x w (at stride 4, of
                     the padded image)
classifier outputs:  scores N x K (probabilities)
The file includes normalization, padding and non-maximum suppression. It does not include resizing to the model's image
size.

exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint, 5 the file's outputs differ from the model's
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder or config file; or --config-file")
    parser.add_argument("--config-file", metavar="RUN", help="the same as RUN")
    parser.add_argument("--classifier", metavar="NAME", help="classifier, such as pvt_tiny")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: the run's best checkpoint")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: its name ends in .onnx, .pt2 or _openvino (a folder)",
    )
    parser.add_argument("--format", choices=_FORMATS, help="default: that of the name of --output")
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images for the check (default: the run's validation images)",
    )
    parser.add_argument("--side", type=int, metavar="PIXELS", help="side of a classifier's images (224)")
    parser.add_argument("--int8", action="store_true", help="quantize an OpenVINO model or an ONNX file to int8")
    parser.add_argument("--calibrate", nargs="+", default=[], metavar="IMAGE", help="with --int8: images like yours")
    parser.add_argument(
        "--calibrate-images", type=int, metavar="N", help="with --int8: use at most N of these images (300)"
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="with --int8: measure AP on the validation data, and keep the file only if it loses at most POINTS",
    )
    add_public_key(parser)
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="override a config key"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Export the model, and check the file against it.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det.deployment.run import SIDE, export_classifier, export_run
    from pvt_det.utils.console import steps_shown

    _take_run(args)
    _refuse_unused_options(args)
    given = {
        "weights": args.weights,
        "images": args.images,
        "kind": args.format,
        "public_key": args.public_key,
        "int8": _int8_request(args),
    }
    with steps_shown() as show:
        if args.classifier:
            report = export_classifier(args.classifier, args.output, side=args.side or SIDE, show=show, **given)
        else:
            words = [word for pair in args.set for word in pair]
            report = export_run(args.config_file, args.output, overrides=words, show=show, **given)
    _print_report(report)
    return 0


def _take_run(args: argparse.Namespace) -> None:
    """Set `config_file` from the positional argument, and require exactly one model."""
    given = [text for text in (args.run, args.config_file, args.classifier) if text]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ConfigError(f"Expected one model to export, found {found}. Give a run folder, or --classifier NAME.")
    args.config_file = args.config_file or args.run


def _refuse_unused_options(args: argparse.Namespace) -> None:
    """Refuse options that have no effect."""
    if args.classifier and args.set:
        raise ConfigError("--set is for --config-file. A classifier has no config. Leave --set out.")
    if args.config_file and args.side is not None:
        raise ConfigError("--side is for --classifier. A detector uses INPUT.MIN_SIZE_TEST. Leave --side out.")
    if args.side is not None and args.side < 32:
        raise ConfigError(f"--side {args.side}: expected 32 pixels or more.")


def _int8_request(args: argparse.Namespace) -> Int8Request | None:
    from pvt_det.deployment.run import CALIBRATION_IMAGES, Int8Request

    if args.int8:
        images = CALIBRATION_IMAGES if args.calibrate_images is None else args.calibrate_images
        return Int8Request(args.calibrate, images, args.max_drop)
    for option in ("calibrate", "calibrate_images", "max_drop"):
        if getattr(args, option) not in (None, []):
            raise ConfigError(f"--{option.replace('_', '-')} is for --int8. Add --int8, or leave it out.")
    return None


def _print_report(report: Report) -> None:
    import torch

    height, width = report.size
    threads = counted(torch.get_num_threads(), "thread")
    files = [report.path] if report.path.is_file() else list(report.path.iterdir())
    size = sum(file.stat().st_size for file in files) / 2**20
    print(f"{report.path}: {report.name}, {size:.1f} MiB; outputs {', '.join(report.outputs)}")
    if report.int8 is None:
        print(f"matches the model on {report.parity}")
    else:
        _print_int8(report.int8)
    print(
        f"{width}x{height} pixels on the CPU, {threads}: model {report.eager_ms:.0f} ms, "
        f"exported file {report.exported_ms:.0f} ms (medians)"
    )


def _print_int8(report: Int8Report) -> None:
    from pvt_det.utils.console import get_console
    from pvt_det.utils.tables import as_columns

    print(f"int8, calibrated on {counted(report.images, 'image')}; differences on {report.compared} of them:")
    console = get_console()
    console.print(as_columns([{name: str(value) for name, value in row.items()} for row in report.rows], console.width))
    for name, before in report.before.items():
        after = report.after[name]
        print(f"{name} on the validation data: fp32 {before:.2f}, int8 {after:.2f} ({after - before:+.2f})")
    if report.precision:
        print(f"What is not int8 computes in {report.precision}.")
    if report.is_controlled:
        print("It was quantized again under control of its accuracy, to stay within --max-drop.")
