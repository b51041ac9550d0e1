"""Compare the time, memory and exactness of this package with other implementations.

Run it in the root of a checkout. benchmarks/README.md describes the suites. To measure the latency and memory of your
own model, use `pvt-det benchmark`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.coco_set import IMAGES as TRAIN_IMAGES
from benchmarks.detectors import CONFIGS, Setup, run_detectors
from benchmarks.evaluation import IMAGES, evaluation_table, run_evaluation
from benchmarks.implementations import RESNET
from benchmarks.inputs import input_table, run_inputs
from benchmarks.mapper import RECIPES, mapper_table, run_mapper
from benchmarks.measure import build_cases
from benchmarks.options import (
    add_device,
    add_model_options,
    add_run_options,
    add_sizes,
    non_negative_int,
)
from benchmarks.report import comparison_table, plot_growth
from benchmarks.runtimes import CONFIGS as DETECTORS
from benchmarks.runtimes import run_runtimes, runtime_table
from benchmarks.startup import run_startup, startup_table
from benchmarks.storage import run_storage, storage_table
from benchmarks.trunk import GROWTH_MODELS, GROWTH_SIDES, run_growth, run_trunk
from pvt_det.cli.benchmark import DTYPES, MODES, Results, positive_int, report
from pvt_det.errors import ConfigError
from pvt_det.models.variants import VARIANTS
from pvt_det.utils.cli import ArgumentParser, run_cli
from pvt_det.utils.environment import environment
from pvt_det.utils.paths import make_folder, make_parent_folder

_EXAMPLES = """
examples:
  python -m benchmarks trunk --models pvt_small pvt_v2_b2 --sizes 1x800x1216 8x224x224 --dtypes fp32 bf16
  python -m benchmarks growth --plot output/growth.png
  python -m benchmarks input --data imagenet/val
  python -m benchmarks detector --data datasets/coco --sizes 1x800x1333 16x800x1333 --compile --workers 8
  python -m benchmarks runtimes --sizes 1x800x1333 --repeats 10 --json output/runtimes.json
  python -m benchmarks mapper --data datasets/coco
  python -m benchmarks storage --data datasets/coco --workers 2
  python -m benchmarks evaluation --repeats 1 --json output/evaluation.json
  python -m benchmarks startup --repeats 3
"""
_TASKS = ("pyramid", "classifier")


def _add_trunk(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=list(VARIANTS), default=["pvt_small"], metavar="VARIANT")
    add_sizes(parser, (1, 800, 1216))
    parser.add_argument(
        "--tasks", nargs="+", choices=_TASKS, default=["pyramid"], help="outputs of the trunk (pyramid)"
    )
    add_model_options(parser)
    parser.add_argument(
        "--compile", action="store_true", help="also measure torch.compile; on a CPU this needs a C++ compiler"
    )


def _run_trunk(args: argparse.Namespace) -> Results:
    cases = build_cases(args.models, args.sizes, args.tasks, args.modes, args.dtypes)
    rows = list(run_trunk(cases, args.device, args.repeats, compiled=args.compile))
    return [row.as_dict() for row in rows], comparison_table(rows)


def _add_growth(parser: argparse.ArgumentParser) -> None:
    models = [*VARIANTS, RESNET]
    parser.add_argument("--models", nargs="+", choices=models, default=list(GROWTH_MODELS), metavar="VARIANT")
    parser.add_argument("--sides", nargs="+", type=positive_int, default=list(GROWTH_SIDES), metavar="PIXELS")
    parser.add_argument("--mode", choices=MODES, default="inference")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    add_device(parser)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="plot time and memory over the image side")


def _run_growth(args: argparse.Namespace) -> Results:
    rows = list(run_growth(args.models, args.sides, args.mode, args.dtype, args.device, args.repeats))
    if args.plot:
        found = environment(args.device)
        plot_growth(rows, args.plot, f"{found['device']}, {found['threads']} threads, torch {torch.__version__}")
    return [row.as_dict() for row in rows], comparison_table(rows)


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of photos")
    _add_limit(parser)


def _run_input(args: argparse.Namespace) -> Results:
    rows = list(run_inputs(args.data, args.limit, args.repeats))
    return [row.as_dict() for row in rows], input_table(rows)


def _add_detector(parser: argparse.ArgumentParser) -> None:
    _add_coco(parser)
    parser.add_argument("--models", nargs="+", type=_config_file, default=list(CONFIGS), metavar="CONFIG")
    add_sizes(parser, (1, 800, 1333))
    add_model_options(parser, dtype="bf16")
    parser.add_argument("--compile", action="store_true", help="also measure a compiled trunk, on a GPU only")
    parser.add_argument(
        "--workers", type=non_negative_int, default=0, metavar="N", help="worker processes per data loader (0)"
    )


def _run_detector(args: argparse.Namespace) -> Results:
    if args.compile and args.device.type == "cpu":
        raise ConfigError("--compile: detectors are compiled on a GPU only. Omit it on a CPU.")
    cases = build_cases(args.models, args.sizes, ["detector"], args.modes, args.dtypes)
    setup = Setup(args.data, args.limit, args.device, args.workers)
    rows = list(run_detectors(cases, setup, args.repeats, compiled=args.compile))
    return [row.as_dict() for row in rows], comparison_table(rows)


def _add_runtimes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", type=_config_file, default=list(DETECTORS), metavar="CONFIG")
    add_sizes(parser, (1, 800, 1333))
    _add_folder(parser, "runtimes", "the exported files, which are used again")


def _add_folder(parser: argparse.ArgumentParser, name: str, content: str) -> None:
    help_text = f"folder for {content} (%(default)s)"
    parser.add_argument("--folder", type=Path, default=Path("output") / name, metavar="DIR", help=help_text)


def _run_runtimes(args: argparse.Namespace) -> Results:
    make_folder(args.folder)
    rows = list(run_runtimes(args.models, args.sizes, args.folder, args.repeats))
    return [row.as_dict() for row in rows], runtime_table(rows)


def _add_mapper(parser: argparse.ArgumentParser) -> None:
    _add_coco(parser)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="default: all")


def _run_mapper(args: argparse.Namespace) -> Results:
    rows = list(run_mapper(args.data, args.recipes, args.limit, args.repeats))
    return [row.as_dict() for row in rows], mapper_table(rows)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder in COCO's layout")
    parser.add_argument("--images", type=positive_int, default=400, metavar="N", help="number of images (%(default)s)")
    parser.add_argument(
        "--workers", type=non_negative_int, default=2, metavar="N", help="worker processes (%(default)s)"
    )
    parser.add_argument(
        "--latency", type=non_negative_int, default=20, metavar="MS", help="delay of every answer (%(default)s ms)"
    )


def _run_storage(args: argparse.Namespace) -> Results:
    rows = list(run_storage(args.data, args.images, args.workers, args.latency / 1000, args.repeats))
    return [row.as_dict() for row in rows], storage_table(rows)


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", type=positive_int, default=IMAGES, metavar="N", help=f"number of images to generate ({IMAGES})"
    )


def _run_evaluation(args: argparse.Namespace) -> Results:
    rows = list(run_evaluation(args.images, args.repeats))
    return [row.as_dict() for row in rows], evaluation_table(rows)


def _add_startup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        type=positive_int,
        default=TRAIN_IMAGES,
        metavar="N",
        help="number of images to generate (%(default)s)",
    )
    _add_folder(parser, "startup", "the generated data set, which is used again")


def _run_startup(args: argparse.Namespace) -> Results:
    make_folder(args.folder)
    rows = list(run_startup(args.images, args.folder, args.repeats))
    return [row.as_dict() for row in rows], startup_table(rows)


def _add_coco(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder in COCO's layout")
    _add_limit(parser)


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=positive_int, default=200, metavar="N", help="number of photos to use (%(default)s)"
    )


def _config_file(path: str) -> str:
    if not path.endswith((".yaml", ".yml")):
        raise argparse.ArgumentTypeError(f"{path}: expected a config file such as {CONFIGS[0]}")
    return path


# name: (description, function that adds its options, function that runs it)
_SUITES: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], Results]]] = {
    "trunk": ("the trunk compared with its textbook form, timm and transformers", _add_trunk, _run_trunk),
    "growth": ("time and memory of the trunk as the image side grows", _add_growth, _run_growth),
    "input": (
        "decoding and augmentation for classifiers compared with Pillow, OpenCV and timm",
        _add_input,
        _run_input,
    ),
    "detector": ("whole detectors on photos compared with Detectron2's", _add_detector, _run_detector),
    "runtimes": ("whole detectors in PyTorch compared with their exported files", _add_runtimes, _run_runtimes),
    "mapper": ("training input of detectors compared with Detectron2's DatasetMapper", _add_mapper, _run_mapper),
    "storage": ("training input of detectors from a folder, shards and a local S3 server", _add_storage, _run_storage),
    "evaluation": ("COCO metrics compared with pycocotools", _add_evaluation, _run_evaluation),
    "startup": (
        "the time from an annotation file of COCO's size to the first training step, and its memory, compared with "
        "Detectron2's loader",
        _add_startup,
        _run_startup,
    ),
}


def build_parser() -> ArgumentParser:
    """Build the command-line parser, with one subcommand per suite."""
    parser = ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    suites = parser.add_subparsers(required=True, metavar="SUITE", title="suites")
    for name, (description, add_options, run) in _SUITES.items():
        suite = suites.add_parser(name, help=description, description=f"Measure {description}.")
        add_options(suite)
        suite.add_argument("--repeats", type=positive_int, default=5, metavar="N", help="number of timed rounds (5)")
        add_run_options(suite)
        suite.set_defaults(run=run, suite=suite, plot=None, device=torch.device("cpu"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a suite, print its table, and optionally write its results.

    Args:
        argv: Command-line arguments. By default those of the process.

    Returns:
        Exit code of the process.
    """
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        # Only the suite's parser can suggest its own options.
        args.suite.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.plot:
        make_parent_folder(args.plot)
    return report(args, args.run)


if __name__ == "__main__":
    sys.exit(run_cli(main))
