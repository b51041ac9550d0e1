"""Writes the stuff label maps of COCO 2017 that Panoptic FPN trains on.

Needs annotations/panoptic_{train,val}2017.json and the folders panoptic_{train,val}2017/ of COCO's panoptic archive;
writes panoptic_stuff_{train,val}2017/.

Example:
    .venv/bin/python datasets/prepare_coco_panoptic.py --root datasets/coco
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pvt_det.data.segmentation.prepare import prepare_stuff
from pvt_det.utils.cli import ArgumentParser, run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Write both splits and say how many label maps there are."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"
    parser.add_argument("--root", type=Path, default=default, help="folder with annotations/")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    args = parser.parse_words(argv)
    for split in ("train2017", "val2017"):
        target = args.root / f"panoptic_stuff_{split}"
        count = prepare_stuff(args.root / "annotations" / f"panoptic_{split}.json", target, args.workers)
        print(f"Wrote {count} label maps to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
