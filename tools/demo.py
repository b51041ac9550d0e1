"""Trains a detector on generated shapes, from nothing, and shows what it finds: 10 minutes on 2 CPU cores."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode
from numpy.typing import NDArray
from PIL import Image

from pvt_det.api import train
from pvt_det.config import load_config
from pvt_det.data.images import read_image
from pvt_det.evaluation.coco import RESULTS_FILE
from pvt_det.utils.cli import ArgumentParser, run_cli
from pvt_det.utils.paths import make_parent_folder
from pvt_det.utils.visualizer import MAX_SHOWN, caption_of, captioned, draw, sheet

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
        make_parent_folder(args.picture)
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
    pictures = save_pictures(dataset, results, args.output / "pictures")
    if args.picture:
        halves = [np.asarray(Image.open(path)) for path in pictures[:6]]
        Image.fromarray(sheet(halves, columns=2)).save(args.picture, quality=85)
    print(f"\nPictures, ground truth on the left and detections on the right: {args.output / 'pictures'}")
    return verdict(metrics["bbox"]["AP"], args.val)


def save_pictures(
    dataset_name: str,
    results_file: str | Path,
    folder: str | Path,
    *,
    count: int = 12,
    min_score: float = 0.5,
    width: int = 384,
) -> list[Path]:
    """Save pictures of evenly spread images of a data set, ground truth on the left and detections on the right.

    Args:
        dataset_name: a registered data set.
        results_file: its detections in COCO's results format.
        folder: where to write; made where absent.
        count: at most so many pictures.
        min_score: detections below this score are not shown.
        width: of each half, in pixels.

    Returns:
        The files, PNG, named after their images.
    """
    metadata = MetadataCatalog.get(dataset_name)
    records = DatasetCatalog.get(dataset_name)
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)]
    detections: dict[Any, list[dict[str, Any]]] = {record["image_id"]: [] for record in chosen}
    for detection in json.loads(Path(results_file).read_text()):
        if detection["image_id"] in detections and detection["score"] >= min_score:
            detections[detection["image_id"]].append(detection)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for record in chosen:
        path = folder / f"{Path(record['file_name']).stem}.png"
        image = read_image(record["file_name"], "RGB")
        Image.fromarray(beside_truth(image, record, detections[record["image_id"]], metadata, width)).save(path)
        files.append(path)
    return files


def beside_truth(
    image: NDArray[np.uint8],
    record: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    metadata: Metadata,
    width: int = 384,
) -> NDArray[np.uint8]:
    """Return one picture: an image with its ground truth, and again with `detections`.

    Args:
        image: its pixels.
        record: Detectron2's record of the image, with `annotations`.
        detections: of this image, in COCO's results format.
        metadata: of the data set; class names and ids are read.
        width: of each half, in pixels.
    """
    classes = metadata.thing_dataset_id_to_contiguous_id
    found = [
        {**d, "category_id": classes[d["category_id"]], "bbox_mode": BoxMode.XYWH_ABS}
        for d in sorted(detections, key=lambda d: d["score"])
    ]
    truth = record["annotations"]
    halves = ((caption_of("ground truth", len(truth)), truth[:MAX_SHOWN]), ("detections", found))
    names = metadata.thing_classes
    return sheet([captioned(draw(image, objects, names, width), text) for text, objects in halves], columns=2)


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
