"""Trains a detector on generated shapes, from nothing, and shows what it finds: 10 minutes on 2 CPU cores."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pvt_det.api import train
from pvt_det.config import load_config
from pvt_det.data.images import read_image
from pvt_det.evaluation.coco import RESULTS_FILE
from pvt_det.utils.cli import ArgumentParser, run_cli
from pvt_det.utils.paths import make_place
from pvt_det.utils.visualizer import save_pictures, sheet

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/shapes/retinanet_pvt_tiny.yaml"
EXPECTED_AP = 70  # percent
BROKEN_AP = 50  # below this something is wrong with the machine or the code

_EXAMPLES = """
examples:
  python tools/demo.py
  python tools/demo.py --output output/demo_small --train 100 --val 20 SOLVER.MAX_ITER 20 SOLVER.WARMUP_ITERS 4
  python tools/demo.py --picture sheet.jpg      one more picture, of several images

Run it again to go on after an interruption; delete the output folder to start anew.
"""


def build_parser() -> ArgumentParser:
    """The command line's options."""
    parser = ArgumentParser(
        prog="demo.py", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR", help="%(default)s")
    parser.add_argument("--train", type=int, default=800, help="number of training images (%(default)s)")
    parser.add_argument("--val", type=int, default=200, help="number of held-out images (%(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also save a sheet of several pictures")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="keys of the config and their values")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; gives 1 where the detector is so bad that something must be broken."""
    args = build_parser().parse_words(argv)
    if args.picture:
        make_place(args.picture)
    shapes = args.output / "shapes"
    sizes = ["--train", str(args.train), "--val", str(args.val)]
    if code := subprocess.call([sys.executable, ROOT / "datasets/make_shapes.py", "--root", shapes, *sizes]):
        return code

    files = [("TRAIN", "train"), ("VAL", "val")]
    paths = [(f"{key}_JSON", shapes / f"annotations/instances_{name}.json") for key, name in files]
    paths += [(f"{key}_IMAGES", shapes / name) for key, name in files]
    data = [word for key, path in paths for word in (f"DATASETS.{key}", str(path))]
    overrides = ["OUTPUT_DIR", str(args.output), "SOLVER.AMP.ENABLED", str(bf16_is_fast()), *data, *args.overrides]
    cfg = load_config(CONFIG, overrides)
    metrics = train(cfg, config_file=str(CONFIG), resume=True, resume_command="the same command")

    dataset = cfg.DATASETS.TEST[0]
    results = args.output / "inference" / dataset / RESULTS_FILE
    pictures = save_pictures(dataset, results, args.output / "pictures", lambda path: read_image(path, "RGB"))
    if args.picture:
        halves = [np.asarray(Image.open(path)) for path in pictures[:6]]
        Image.fromarray(sheet(halves, columns=2)).save(args.picture, quality=85)
    print(f"\nPictures, ground truth on the left and detections on the right: {args.output / 'pictures'}")
    return verdict(metrics["bbox"]["AP"], args.val)


def bf16_is_fast() -> bool:
    """Tell whether half the bits save time: on a GPU, and on CPUs with the instructions for it."""
    if torch.cuda.is_available():
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def verdict(ap: float, images: int) -> int:
    """Say how good the detector is; gives the exit code."""
    print(f"Box AP {ap / 100:.3f} on {images} held-out images: ", end="")
    if ap >= EXPECTED_AP:
        print(f"as it should be ({EXPECTED_AP / 100:.2f} or more).")
    elif ap >= BROKEN_AP:
        print(f"less than the {EXPECTED_AP / 100:.2f} that the full demo reaches.")
    else:
        print(f"far less than the {EXPECTED_AP / 100:.2f} that the full demo reaches; something is broken.")
    return 0 if ap >= BROKEN_AP else 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
