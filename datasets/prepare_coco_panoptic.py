"""Write the stuff label maps of COCO 2017 that Panoptic FPN trains on.

The input is annotations/panoptic_{train,val}2017.json and the folders panoptic_{train,val}2017/ of COCO's panoptic
archive. The result is written to panoptic_stuff_{train,val}2017/.

Example:
    .venv/bin/python datasets/prepare_coco_panoptic.py --root datasets/coco
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pvt_det.data.images import read_image
from pvt_det.data.segmentation.folders import panoptic_folder
from pvt_det.errors import ConfigError, DataError
from pvt_det.utils.cli import ArgumentParser, run_cli
from pvt_det.utils.paths import make_folder

IGNORE = 255


def prepare_stuff(panoptic_json: str | Path, target: str | Path, workers: int = 1) -> int:
    """Write the label maps for Panoptic FPN's semantic head.

    Label 0 means any thing. Labels 1, 2, … are the stuff classes in the order of the json file.

    Args:
        panoptic_json: Annotations in COCO's panoptic format. `pvt_det.data.segmentation.folders.panoptic_folder`
            describes where their PNG files are.
        target: Folder to write to. It is created if it does not exist.
        workers: Number of processes, at least 1.

    Returns:
        Number of label maps written.

    Raises:
        ConfigError: The folder cannot be written, or `workers` is less than 1.
        DataError: The annotations cannot be read, or a PNG file is missing or broken.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}: expected 1 or more.")
    panoptic_json, target = Path(panoptic_json), Path(target)
    try:
        content = json.loads(panoptic_json.read_text(encoding="utf-8"))
        stuff = [category["id"] for category in content["categories"] if not category["isthing"]]
        annotations = content["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{panoptic_json} cannot be read as COCO's panoptic format ({error!r})") from error
    source = panoptic_folder(panoptic_json)
    make_folder(target)
    label_of = {id_: label for label, id_ in enumerate(stuff, start=1)}
    write = partial(_write_stuff, source=source, target=target, label_of=label_of)
    with ProcessPoolExecutor(workers) as pool:
        return sum(1 for _ in pool.map(write, annotations, chunksize=32))


def _write_stuff(annotation: dict[str, Any], source: Path, target: Path, label_of: dict[int, int]) -> None:
    colors = read_image(source / annotation["file_name"], "RGB").astype(np.uint32)
    segments = colors @ np.array([1, 256, 256**2], dtype=np.uint32)
    ids, places = np.unique(segments, return_inverse=True)
    labels = {info["id"]: label_of.get(info["category_id"], 0) for info in annotation["segments_info"]}
    table: npt.NDArray[np.uint8] = np.array([labels.get(int(id_), IGNORE) for id_ in ids], dtype=np.uint8)
    Image.fromarray(table[places].reshape(segments.shape)).save(target / annotation["file_name"])


def main(argv: Sequence[str] | None = None) -> int:
    """Write the label maps of both splits.

    Args:
        argv: Command-line arguments. By default those of the process.

    Returns:
        Exit code of the process.
    """
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
