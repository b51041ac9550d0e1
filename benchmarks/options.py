"""Command-line options shared by several suites."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.measure import Size
from pvt_det.cli.benchmark import DTYPES, MODES, device, image_size, positive_int
from pvt_det.utils.environment import available_cores

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def add_model_options(parser: argparse.ArgumentParser, *, dtype: str = "fp32") -> None:
    """Add `--modes`, `--dtypes` and `--device`.

    Args:
        parser: Parser to add the options to.
        dtype: Default of `--dtypes`, "fp32" or "bf16".
    """
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: both")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=[dtype], help=f"data types; bf16 uses autocast ({dtype})"
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, which defaults to the first GPU if one is available.

    Args:
        parser: Parser to add the option to.
    """
    parser.add_argument(
        "--device", type=device, default=torch.device(_DEVICE), help=f"device such as cpu or cuda:1 ({_DEVICE})"
    )


def add_sizes(parser: argparse.ArgumentParser, default: Size) -> None:
    """Add `--sizes`.

    Args:
        parser: Parser to add the option to.
        default: Default batch size, height and width in pixels.
    """
    help_text = f"batch size, height and width of the images ({'x'.join(map(str, default))})"
    parser.add_argument("--sizes", nargs="+", type=image_size, default=[default], metavar="BxHxW", help=help_text)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` and `--json`.

    Args:
        parser: Parser to add the options to.
    """
    cores = available_cores()
    parser.add_argument(
        "--threads", type=positive_int, default=cores, metavar="N", help="number of CPU threads (all cores)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and the environment to this file")


def non_negative_int(value: str) -> int:
    """Parse an integer of 0 or more.

    Args:
        value: Value of a command-line option.
    """
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value!r} is not an integer of 0 or more")
    return int(value)
