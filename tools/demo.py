"""Train a detector on real photographs and show what it finds, in 5 to 20 minutes on 2 CPU cores.

RetinaNet with PVT-Tiny learns to find blood cells in 90 microscope photographs, from random weights, and is evaluated
on 30 others. The photographs are in `datasets/blood_cells`.
"""

from __future__ import annotations

import argparse
import json
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

from pvt_det.api import train, write_page
from pvt_det.config import load_config
from pvt_det.data.images import read_image
from pvt_det.evaluation.coco import RESULTS_FILE
from pvt_det.evaluation.thresholds import match_scores
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.reports.detection import build_evaluators
from pvt_det.results import load_run
from pvt_det.run_folder import PAGE_NAME
from pvt_det.utils.cli import ArgumentParser, run_cli
from pvt_det.utils.precision import has_fast_bf16
from pvt_det.utils.visualizer import MAX_SHOWN, caption_of, captioned, draw, sheet

ROOT = Path(__file__).parents[1]
DATA = ROOT / "datasets/blood_cells"
CONFIG = ROOT / "configs/small/retinanet_pvt_tiny_blood_cells.yaml"
MAX_ITER = 350
EXPECTED_AP = 38.0  # percent; the full demo reaches more with every seed tried
BROKEN_AP = 25.0  # below this, the machine or the code is broken

_EXAMPLES = """
examples:
  python tools/demo.py
  python tools/demo.py --output output/demo_short SOLVER.MAX_ITER 20 SOLVER.WARMUP_ITERS 4

Run it again to resume after an interruption. Delete the output folder to start over.
"""


def build_parser() -> ArgumentParser:
    """Build the parser of the command-line options."""
    parser = ArgumentParser(
        prog="demo.py", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR", help="%(default)s")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their values")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 1 if the detector of the full demo is so bad that something must be broken."""
    args = build_parser().parse_words(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = [word for split in ("train", "val") for word in data_keys(split)]
    settings = ["OUTPUT_DIR", args.output, "SOLVER.AMP.ENABLED", has_fast_bf16(device), "SOLVER.MAX_ITER", MAX_ITER]
    cfg = load_config(CONFIG, [*map(str, settings), *data, *args.overrides])
    metrics = train(cfg, config_file=str(CONFIG), resume=True, resume_command="the same command")

    dataset, threshold = cfg.DATASETS.TEST[0], best_threshold(args.output)
    results = args.output / "inference" / dataset / RESULTS_FILE
    pictures = save_pictures(dataset, results, args.output / "pictures", min_score=threshold)
    pairs = [np.asarray(Image.open(path)) for path in pictures[:6]]
    Image.fromarray(sheet(pairs, columns=2)).save(args.output / "pictures.jpg", quality=85)
    write_page(args.output, args.output / PAGE_NAME)
    print_next_steps(args.output, threshold)
    return verdict(metrics["bbox"]["AP"], cfg.SOLVER.MAX_ITER)


def data_keys(split: str) -> list[str]:
    """Return the config keys and values that name the images and annotations of "train" or "val"."""
    annotations = DATA / f"annotations/instances_{split}.json"
    return [
        f"DATASETS.{split.upper()}_JSON",
        str(annotations),
        f"DATASETS.{split.upper()}_IMAGES",
        str(DATA / "images"),
    ]


def best_threshold(output: Path) -> float:
    """Return the score threshold with the best F1 on the held-out photographs.

    Args:
        output: The run folder.
    """
    evaluators = build_evaluators(load_run(output))
    return match_scores(evaluators["bbox"]).best if evaluators else SCORE_THRESHOLD


def save_pictures(
    dataset_name: str,
    results_file: str | Path,
    folder: str | Path,
    *,
    count: int = 12,
    min_score: float = SCORE_THRESHOLD,
    width: int = 400,
) -> list[Path]:
    """Save pictures of evenly spread images of a data set, with the ground truth left and the detections right.

    Args:
        dataset_name: A registered data set.
        results_file: Its detections in COCO's results format.
        folder: Where to write the pictures. It is created if it does not exist.
        count: Save at most this many pictures.
        min_score: Leave out detections with a lower score.
        width: Width of each half in pixels.

    Returns:
        The PNG files, named after their images.
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
    width: int = 400,
) -> NDArray[np.uint8]:
    """Draw an image twice in one picture: with its ground truth on the left, with its detections on the right.

    Args:
        image: `H×W×3` RGB pixels.
        record: Detectron2's record of the image, with `annotations`.
        detections: Detections in this image, in COCO's results format.
        metadata: Metadata of the data set, with the names and ids of its classes.
        width: Width of each half in pixels.

    Returns:
        `H×W×3` RGB pixels.
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


def print_next_steps(output: Path, threshold: float) -> None:
    """Print where the results are and which commands to try next.

    Args:
        output: The run folder.
        threshold: The score threshold with the best F1.
    """
    print(f"""
Results
  {output / "pictures.jpg"}  ground truth beside detections that score at least {threshold:.2f}, where F1 is best
  {output / "pictures"}      the same, one file per image
  {output / PAGE_NAME}   AP by class and size, curves, kinds of errors: open it in a browser
Next
  pvt-det predict PHOTOS --config-file {output} --output found --score-threshold {threshold:.2f}
  pvt-det export {output} --images {DATA / "images"} --output cells.onnx
  pvt-det inspect TRAIN.json IMAGES --html data.html --write-config mine.yaml    (your own data)
""")


def verdict(ap: float, iterations: int) -> int:
    """Print how good the detector is, and return the exit code.

    Args:
        ap: Box AP in percent.
        iterations: Length of the training. Only the full demo can show that something is broken.
    """
    print(f"Box AP {ap / 100:.3f} on the held-out photographs: ", end="")
    if iterations < MAX_ITER:
        print(f"{iterations} of {MAX_ITER} iterations are too few to judge ({EXPECTED_AP / 100:.2f} in the full demo).")
        return 0
    if ap >= EXPECTED_AP:
        print(f"as expected ({EXPECTED_AP / 100:.2f} or more).")
    elif ap >= BROKEN_AP:
        print(f"below the {EXPECTED_AP / 100:.2f} that the full demo reaches.")
    else:
        print(f"far below the {EXPECTED_AP / 100:.2f} that the full demo reaches. Something is broken.")
    return 0 if ap >= BROKEN_AP else 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
