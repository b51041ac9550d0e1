"""Draw attention maps of a PVT: for each head of a block, a heat map over the image."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pvt_det.errors import ConfigError
from pvt_det.utils.cli import ArgumentParser, add_public_key
from pvt_det.utils.paths import make_parent_folder
from pvt_det.utils.signing import verify_signed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EXAMPLES = """
examples:
  the last block of stage 3 of a trained detector, for the query at pixel (320, 240):
    %(prog)s photo.jpg --config-file output/mine --stage 3 --query 320,240
  head 2 of the published classifier, for the query of the class token:
    %(prog)s photo.jpg --model pvt_small --stage 4 --query class --head 2

Without --query, a map shows the attention that each position gets, averaged over all queries. The number above a map is
its largest weight, as a multiple of uniform attention.
exit codes: 0 done, 2 configuration, 3 data, 4 checkpoint
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command's options."""
    parser = ArgumentParser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, metavar="IMAGE")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="RUN", help="detector: run folder or config file")
    model.add_argument("--model", metavar="NAME", help="classifier, such as pvt_small")
    parser.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="default: the run's best checkpoint, or the classifier's published weights",
    )
    parser.add_argument("--stage", type=int, default=4, help="1 to 4 (%(default)s)")
    parser.add_argument(
        "--block",
        type=int,
        default=-1,
        help="block of the stage, from 0; negative numbers count from the last (%(default)s)",
    )
    parser.add_argument("--head", type=_head, metavar="all|N", help="head, from 0 (all)")
    parser.add_argument(
        "--query", type=_query, metavar="X,Y|class", help="query: a pixel of the image, or the class token"
    )
    add_public_key(parser)
    parser.add_argument("--output", type=Path, default=Path("attention.png"), metavar="FILE", help="%(default)s")
    return parser


def run(args: argparse.Namespace) -> int:
    """Draw the attention maps.

    Args:
        args: Parsed options of `build_parser`.

    Returns:
        The exit code.
    """
    from pvt_det.data.images import read_image
    from pvt_det.inference.attention import compute_attention, draw_attention
    from pvt_det.inference.trunks import classifier, detector_trunk
    from pvt_det.run_folder import config_file

    if args.output.suffix != ".png":
        raise ConfigError(f"--output {args.output}: expected a name that ends in .png")
    files = [Path(config_file(args.config_file))] if args.config_file else []
    if files := files + ([Path(args.weights)] if args.weights else []):
        verify_signed(args.public_key, *files)
    elif args.public_key:
        raise ConfigError("--public-key has no effect without --weights. Published weights are verified by their hash.")
    make_parent_folder(args.output)
    pixels = read_image(args.image, "RGB")
    at = _share(args.query, pixels) if isinstance(args.query, tuple) else None
    trunk, image = (
        detector_trunk(args.config_file, args.weights, pixels)
        if args.config_file
        else classifier(args.model, args.weights, pixels)
    )
    attention = compute_attention(trunk, image, stage=args.stage, block=args.block, class_token=args.query == "class")
    maps = attention.maps(at)
    heads = list(range(len(maps))) if args.head is None else [args.head]
    if heads[-1] >= len(maps):
        raise ConfigError(f"--head {heads[-1]}: expected 0 to {len(maps) - 1}, the heads of stage {args.stage}.")
    draw_attention(pixels, maps[heads], heads, args.output, at=at)
    queries = "the class token" if attention.queries is None else "{}x{} queries".format(*attention.queries)
    keys = "x".join(map(str, attention.keys))
    block = "last block" if args.block == -1 else f"block {args.block}"
    print(f"{args.output}: stage {args.stage}, {block}: attention of {queries} to {keys} keys")
    return 0


def _share(query: tuple[int, int], pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the center of a pixel as fractions of the width and the height."""
    (x, y), (height, width) = query, pixels.shape[:2]
    if not (0 <= x < width and 0 <= y < height):
        raise ConfigError(f"--query {x},{y}: expected a pixel of the {width}x{height} image, counted from 0.")
    return (x + 0.5) / width, (y + 0.5) / height


def _head(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected all or the number of a head, from 0")
    return int(text)


def _query(text: str) -> tuple[int, int] | str:
    if text == "class":
        return text
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected X,Y in pixels, such as 320,240, or class")
    return int(match[1]), int(match[2])
