"""The mapper suite: how fast one core makes a detector's training input, how exactly, and what annotations cost.

Both contestants read the same files, of annotations kept as their loaders keep them. Detectron2 resizes by Pillow; this
package as the recipe says, "paper": to 800 by OpenCV, "jitter": to 640 … 800, anti-aliased as Pillow does.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from benchmarks.implementations import OURS
from benchmarks.measure import MIB, in_own_process, median_ratio, private_memory, take_turns
from benchmarks.photos import DETECTRON2, Records, packed, read_records, readers
from pvt_det.config import get_config

RECIPES = {"paper": ("cv2", (800,)), "jitter": ("pil", (640, 672, 704, 736, 768, 800))}
PLAIN = "a list"
# Each worker's annotations are measured on so many images; COCO has 118,287 to train on.
_ANNOTATED = 2000
_WORKERS = 2


@dataclass(frozen=True)
class MapperRow:
    """One contestant's result.

    Attributes:
        recipe: A name of `RECIPES`, or "annotations": what a loader's worker holds after reading all of them once.
        contestant: Who.
        images_per_s: On one core, median over the rounds.
        speedup: How many times as fast this package was.
        box_difference: Largest difference from Detectron2's boxes, in pixels.
        mask_difference: Largest of the polygons' coordinates, in pixels.
        level_difference: Mean difference of the pixels, in levels of 255.
        worker_mib: Memory that a worker does not share, by reading the annotations of `images` images.
        images: So many images.
    """

    recipe: str
    contestant: str
    images: int
    images_per_s: float | None = None
    speedup: float | None = None
    box_difference: float | None = None
    mask_difference: float | None = None
    level_difference: float | None = None
    worker_mib: float | None = None

    def as_dict(self) -> dict[str, object]:
        """The row as plain values, for JSON."""
        return asdict(self)


def run_mapper(folder: Path, recipes: Sequence[str], limit: int, repeats: int) -> Iterator[MapperRow]:
    """Measure on the first `limit` photos of a folder in COCO's layout, on one thread.

    Raises:
        DataError: There are none.
    """
    records = read_records(folder, "train2017", limit)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for recipe in recipes:
        reading = readers(recipe_config(recipe, "horizontal"), records, is_train=True)
        seconds = take_turns(
            {name: _over(read, len(records)) for name, read in reading.items()}, torch.device("cpu"), repeats
        )
        gaps = differences(recipe, records)
        for name, times in seconds.items():
            rate, ratio = len(records) / statistics.median(times), median_ratio(times, seconds[OURS])
            yield MapperRow(recipe, name, len(records), rate, ratio, *(gaps if name == OURS else (0.0, 0.0, 0.0)))
    for name, memory in in_own_process(_worker_memory, records, _ANNOTATED).items():
        yield MapperRow("annotations", name, _ANNOTATED, worker_mib=memory)


def recipe_config(recipe: str, flip: str) -> CfgNode:
    """The config of a Mask R-CNN's training input."""
    cfg = get_config()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.RANDOM_FLIP = flip
    cfg.INPUT.RESIZE_BACKEND, cfg.INPUT.MIN_SIZE_TRAIN = RECIPES[recipe]
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    return cfg


def differences(recipe: str, records: Records) -> tuple[float, float, float]:
    """Largest differences of boxes and polygons from Detectron2's, in pixels, and the mean one of pixels, in levels.

    Without flips, which the two draw in another order; the size is drawn alike.
    """
    reading = readers(recipe_config(recipe, "none"), records, is_train=True)
    boxes, masks, levels = [], [], []
    for number in range(len(records)):
        pair = []
        for read in reading.values():
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
    """Images per second and core, exactness, and a worker's memory."""
    table = Table(
        caption="one core; largest differences from Detectron2's; memory that each of 2 workers holds for itself "
        "after reading all annotations"
    )
    for heading in ("recipe", "contestant", "images"):
        table.add_column(heading)
    for heading in ("images/s", "speed-up", "boxes", "polygons", "pixels, mean", "a worker"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.recipe,
            row.contestant,
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


def _over(read: Callable[[int], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        # The same sizes for every contestant, as far as they draw alike.
        np.random.seed(0)
        for number in range(count):
            read(number)

    return run


def _worker_memory(records: Records, annotated: int) -> dict[str, float]:
    """MiB by which reading the annotations of `annotated` images raises what a worker holds; the largest of two."""
    many = [copy.deepcopy(records[number % len(records)]) for number in range(annotated)]
    kept = {
        OURS: DatasetFromList(packed(recipe_config("paper", "none"), many), copy=False),
        DETECTRON2: DatasetFromList(many),
        PLAIN: many,
    }
    # As in training where this can be measured at all: this process was itself started otherwise.
    start = "fork" if "fork" in get_all_start_methods() else None
    found = {}
    for name, kept_records in kept.items():
        loader = DataLoader(
            _Reading(kept_records),
            batch_size=None,
            sampler=range(_WORKERS),
            num_workers=_WORKERS,
            multiprocessing_context=start,
        )
        grown = [growth for growth in loader if growth is not None]
        if grown:
            found[name] = max(grown)
    return found


class _Reading(Dataset[float | None]):
    """Reads all records, and tells the growth of the memory that its process does not share with others, in MiB."""

    def __init__(self, records: Any) -> None:
        self.records = records

    def __getitem__(self, worker: int) -> float | None:
        before = private_memory()
        for number in range(len(self.records)):
            # As Detectron2's mapper begins; it visits, and so changes the count of, every object of a plain list.
            copy.deepcopy(self.records[number])
        after = private_memory()
        return None if before is None or after is None else (after - before) / MIB
