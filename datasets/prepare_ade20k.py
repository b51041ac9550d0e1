"""Convert ADE20K's label maps to the labels that the configs train on.

The input is the scene parsing challenge's ADEChallengeData2016.zip (http://sceneparsing.csail.mit.edu), unpacked in
datasets/. Labels 1 to 150 and 0 ("other") become 0 to 149 and 255 (ignored) in annotations_detectron2/.

Example:
    .venv/bin/python datasets/prepare_ade20k.py --root datasets/ADEChallengeData2016
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pvt_det.data.images import check_size, read_header, read_labels
from pvt_det.errors import ConfigError, DataError
from pvt_det.utils.cli import ArgumentParser, run_cli
from pvt_det.utils.paths import make_folder

CLASSES = 150
SPLITS = ("training", "validation")


def prepare_ade20k(root: str | Path, workers: int = 1) -> dict[str, int]:
    """Convert the label maps of the scene parsing challenge.

    Labels 1 to 150 become 0 to 149, and 0 ("other") becomes 255.

    Args:
        root: Folder ADEChallengeData2016 with `images/{training,validation}/*.jpg` and
            `annotations/{training,validation}/*.png`. The result is written to its subfolder `annotations_detectron2/`.
        workers: Number of processes, at least 1.

    Returns:
        Number of label maps written for each split.

    Raises:
        ConfigError: A folder cannot be written, or `workers` is less than 1.
        DataError: A folder, image or label map is missing, or a label map is not the challenge's.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}: expected 1 or more.")
    root = Path(root)
    counts = {}
    for split in SPLITS:
        labels = _pngs(root / "annotations" / split)
        target = root / "annotations_detectron2" / split
        make_folder(target)
        convert = partial(_convert, images=root / "images" / split, target=target)
        with ProcessPoolExecutor(workers) as pool:
            counts[split] = sum(1 for _ in pool.map(convert, labels, chunksize=32))
    return counts


def _convert(path: Path, images: Path, target: Path) -> None:
    labels = read_labels(path)
    check_size(path, (labels.shape[1], labels.shape[0]), read_header(images / f"{path.stem}.jpg"))
    if labels.max() > CLASSES:
        raise DataError(
            f"label map {path} contains the value {labels.max()}; expected 0 to {CLASSES}. It may be from the full "
            "ADE20K data set. Use ADEChallengeData2016"
        )
    # In uint8, 0 - 1 is 255, the ignored value.
    Image.fromarray(labels - np.uint8(1)).save(target / path.name)


def _pngs(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise DataError(f"{folder} contains no PNG files: expected the layout of ADEChallengeData2016.zip")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Convert both splits.

    Args:
        argv: Command-line arguments. By default those of the process.

    Returns:
        Exit code of the process.
    """
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
