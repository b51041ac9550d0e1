"""Writes the generated shapes set in COCO format: seconds, no download, the same on every machine.

Example:
    .venv/bin/python datasets/make_shapes.py --root datasets/shapes --train 800 --val 200
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pvt_det.data.shapes.generate import write_shapes
from pvt_det.utils.cli import ArgumentParser, run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set and say where it is."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/shapes"), help="folder to write to")
    parser.add_argument("--train", type=int, default=800, help="number of training images")
    parser.add_argument("--val", type=int, default=200, help="number of held-out images")
    parser.add_argument("--image-size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another set")
    args = parser.parse_words(argv)
    root = write_shapes(args.root, train=args.train, val=args.val, image_size=args.image_size, seed=args.seed)
    print(f"Wrote {args.train} training and {args.val} validation images to {root}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
