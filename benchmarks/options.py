"""Command-line options that several suites have."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from benchmarks.measure import Size
from pvt_det.cli.benchmark import device, image_size, positive_int
from pvt_det.profiling import DTYPES, MODES

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def add_model_options(parser: argparse.ArgumentParser, *, dtype: str = "fp32") -> None:
    """Add `--modes`, `--dtypes` and `--device`.

    Args:
        parser: The parser to add to.
        dtype: Default of `--dtypes`.
    """
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: both")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=[dtype], help=f"number formats, bf16 by autocast ({dtype})"
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, by default the first GPU if there is one."""
    parser.add_argument(
        "--device", type=device, default=torch.device(_DEVICE), help=f"such as cpu or cuda:1 ({_DEVICE})"
    )


def add_sizes(parser: argparse.ArgumentParser, default: Size) -> None:
    """Add `--sizes`, with one size by default."""
    text = "x".join(map(str, default))
    help_text = f"batch, height and width of the images ({text})"
    parser.add_argument("--sizes", nargs="+", type=image_size, default=[default], metavar="BxHxW", help=help_text)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` and `--json`."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=positive_int, default=cores, metavar="N", help="of the CPU (all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and the environment to a file")


def non_negative_int(text: str) -> int:
    """Parse an integer of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 0 or more")
    return int(text)
