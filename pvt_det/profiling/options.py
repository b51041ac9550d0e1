"""Command-line options that `pvt-det benchmark` and the benchmarks of a checkout have in common."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import torch

from pvt_det.config.validate import is_device
from pvt_det.profiling.case import DTYPES, MODES, Size

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


def device(text: str) -> torch.device:
    """Parse a device that PyTorch can compute on."""
    if not is_device(text):
        raise argparse.ArgumentTypeError(f"{text}: expected cpu or cuda, or one of several GPUs, such as cuda:1")
    found = torch.device(text)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text}: PyTorch sees no GPU here")
    return found


def image_size(text: str) -> Size:
    """Parse batch, height and width, such as "1x800x1216"."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or min(size := (int(match[1]), int(match[2]), int(match[3]))) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxHEIGHTxWIDTH, such as 1x800x1216")
    return size


def positive_int(text: str) -> int:
    """Parse an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 1 or more")
    return int(text)


def non_negative_int(text: str) -> int:
    """Parse an integer of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 0 or more")
    return int(text)
