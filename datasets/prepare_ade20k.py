"""Converts ADE20K's label maps to what the configs train on.

The data is the scene parsing challenge's ADEChallengeData2016.zip (http://sceneparsing.csail.mit.edu), unpacked in
datasets/. Its labels, 1 to 150 and 0 for "other", become 0 to 149 and 255 (ignored) in annotations_detectron2/.

Example:
    .venv/bin/python datasets/prepare_ade20k.py --root datasets/ADEChallengeData2016
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pvt_det.data.segmentation.prepare import prepare_ade20k
from pvt_det.utils.cli import ArgumentParser, run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Convert both splits and say how many label maps there are."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "ADEChallengeData2016"
    parser.add_argument("--root", type=Path, default=default, help="folder with images/ and annotations/")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    args = parser.parse_words(argv)
    for split, count in prepare_ade20k(args.root, args.workers).items():
        print(f"Wrote {count} label maps to {args.root / 'annotations_detectron2' / split}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
