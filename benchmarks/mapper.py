"""The mapper suite: speed, exactness and memory of a detector's training input.

Both implementations read the same files, and store the annotations as in their data loaders. Detectron2 resizes with
Pillow. This package resizes as in the recipe: "paper" to 800 pixels with OpenCV, "jitter" to 640 to 800 pixels with
antialiasing like Pillow's.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from rich.table import Table

from benchmarks.implementations import OURS
from benchmarks.measure import median_ratio, time_interleaved, worker_growth
from benchmarks.photos import DETECTRON2, Records, build_readers, pack_records, read_records
from pvt_det.config import get_config
from pvt_det.profiling import run_in_own_process

RECIPES = {"paper": ("cv2", (800,)), "jitter": ("pil", (640, 672, 704, 736, 768, 800))}
PLAIN = "a list"
# Number of images whose annotations a worker reads. COCO's training set has 118,287.
_ANNOTATED = 2000


@dataclass(frozen=True)
class MapperRow:
    """The result of one implementation.

    Attributes:
        recipe: Key of `RECIPES`, or "annotations" for the memory of a data loader's worker.
        implementation: Name of the implementation.
        images: Number of images.
        images_per_s: Images per second on one core, the median over the rounds, or None.
        speedup: This implementation's time divided by pvt_det's, or None.
        box_difference: Largest difference from Detectron2's boxes in pixels, or None.
        mask_difference: Largest difference from the coordinates of Detectron2's polygons in pixels, or None.
        level_difference: Mean difference from Detectron2's pixels in levels of 255, or None.
        worker_mib: Memory in MiB that a worker no longer shares with its parent after reading the annotations of
            `images` images, or None.
    """

    recipe: str
    implementation: str
    images: int
    images_per_s: float | None = None
    speedup: float | None = None
    box_difference: float | None = None
    mask_difference: float | None = None
    level_difference: float | None = None
    worker_mib: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the attributes by name, for JSON."""
        return asdict(self)


def run_mapper(folder: Path, recipes: Sequence[str], limit: int, repeats: int) -> Iterator[MapperRow]:
    """Measure the training input on one thread.

    Args:
        folder: Folder of photos in COCO's layout.
        recipes: Keys of `RECIPES`.
        limit: Maximum number of photos to read.
        repeats: Number of timed rounds.

    Yields:
        One row per recipe and implementation, followed by rows for the memory of the annotations.

    Raises:
        DataError: The folder does not have COCO's layout, or no photo has an object.
    """
    records = read_records(folder, "train2017", limit)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for recipe in recipes:
        readers = build_readers(build_config(recipe, "horizontal"), records, is_train=True)
        calls = {name: _read_all(read, len(records)) for name, read in readers.items()}
        seconds = time_interleaved(calls, torch.device("cpu"), repeats)
        gaps = measure_differences(recipe, records)
        for name, times in seconds.items():
            rate, ratio = len(records) / statistics.median(times), median_ratio(times, seconds[OURS])
            yield MapperRow(recipe, name, len(records), rate, ratio, *(gaps if name == OURS else (0.0, 0.0, 0.0)))
    for name, memory in run_in_own_process(_worker_memory, records, _ANNOTATED).items():
        yield MapperRow("annotations", name, _ANNOTATED, worker_mib=memory)


def build_config(recipe: str, flip: str) -> CfgNode:
    """Build the config of Mask R-CNN's training input.

    Args:
        recipe: Key of `RECIPES`.
        flip: Random flip, "horizontal" or "none".
    """
    cfg = get_config()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RANDOM_FLIP = flip
    cfg.INPUT.RESIZE_BACKEND, cfg.INPUT.MIN_SIZE_TRAIN = RECIPES[recipe]
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    return cfg


def measure_differences(recipe: str, records: Records) -> tuple[float, float, float]:
    """Measure how much the two implementations differ.

    Flips are off, because the implementations draw size and flip in different orders.

    Args:
        recipe: Key of `RECIPES`.
        records: Records of the photos.

    Returns:
        Largest difference of boxes and of polygons in pixels, and mean difference of pixels in levels of 255.
    """
    readers = build_readers(build_config(recipe, "none"), records, is_train=True)
    boxes, masks, levels = [], [], []
    for number in range(len(records)):
        pair = []
        for read in readers.values():
            np.random.seed(number)
            pair.append(read(number))
        ours, theirs = pair
        levels.append((ours["image"].short() - theirs["image"].short()).abs().float().mean())
        boxes.append((ours["instances"].gt_boxes.tensor - theirs["instances"].gt_boxes.tensor).abs().max())
        masks += [
            np.abs(polygon - other).max()
            for polygons, others in zip(
                ours["instances"].gt_masks.polygons, theirs["instances"].gt_masks.polygons, strict=True
            )
            for polygon, other in zip(polygons, others, strict=True)
        ]
    return float(max(boxes)), float(max(masks)), float(torch.stack(levels).mean())


def mapper_table(rows: Sequence[MapperRow]) -> Table:
    """Build the table of images per second, exactness, and memory of a worker.

    Args:
        rows: Results of all recipes and implementations.
    """
    table = Table(
        caption="one core; speed-up: pvt_det over the implementation; largest differences from Detectron2; per worker: "
        "memory that each of 2 workers no longer shares after reading all annotations"
    )
    for heading in ("recipe", "implementation", "images"):
        table.add_column(heading)
    for heading in ("images/s", "speed-up", "boxes", "polygons", "pixels, mean", "per worker"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.recipe,
            row.implementation,
            str(row.images),
            *(
                "" if value is None else form.format(value)
                for value, form in (
                    (row.images_per_s, "{:.0f}"),
                    (row.speedup, "{:.2f}x"),
                    (row.box_difference, "{:.4f} px"),
                    (row.mask_difference, "{:.4f} px"),
                    (row.level_difference, "{:.2f} of 255"),
                    (row.worker_mib, "{:.0f} MiB"),
                )
            ),
        )
    return table


def _read_all(read: Callable[[int], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        # Both implementations draw the same sizes.
        np.random.seed(0)
        for number in range(count):
            read(number)

    return run


def _worker_memory(records: Records, annotated: int) -> dict[str, float]:
    """Return the memory in MiB that one of two workers at most stops sharing by reading all records."""
    many = [copy.deepcopy(records[number % len(records)]) for number in range(annotated)]
    stored = {
        OURS: DatasetFromList(pack_records(build_config("paper", "none"), many), copy=False),
        DETECTRON2: DatasetFromList(many),
        PLAIN: many,
    }
    growths = {name: worker_growth(stored_records, len(many)) for name, stored_records in stored.items()}
    return {name: growth for name, growth in growths.items() if growth is not None}
