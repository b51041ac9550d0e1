"""The evaluation suite: COCO's metrics by this package's evaluators on generated detections of COCO's number."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from rich.table import Table

from benchmarks.measure import (
    MIB,
    in_own_process,
    median_ratio,
    peak_memory,
    resident_memory,
    take_turns,
)
from pvt_det.data.coco.registration import register_coco
from pvt_det.evaluation.coco import COCOEvaluator
from pvt_det.evaluation.detections import Detections
from pvt_det.evaluation.ground_truth import GroundTruth
from pvt_det.evaluation.metrics import evaluate_hotcoco, evaluate_pycocotools

HOTCOCO = "hotcoco (pvt_det)"
PYCOCOTOOLS = "pycocotools"
# COCO val2017: 5,000 images, some 36,000 objects of 80 classes; a detector gives 100 detections an image.
IMAGES = 5000
_OBJECTS_AN_IMAGE = 7.2
_CLASSES = 80
_DETECTIONS = 100
_SIZE = (480, 640)


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluator's result.

    Attributes:
        evaluator: `HOTCOCO` or `PYCOCOTOOLS`.
        images: So many images, of 100 detections each.
        objects: So many objects in them.
        seconds: From detections in memory to the 12 numbers, median.
        speedup: How many times as fast `HOTCOCO` was; the median of the rounds' ratios.
        difference: Largest difference of the 12 numbers (0 … 1) from pycocotools'.
        kept_mib: Memory that the run's evaluator kept of all detections as the images had arrived; None where another
            evaluator was measured.
        peak_mib: Memory that its metrics then took at most, over that.
    """

    evaluator: str
    images: int
    objects: int
    seconds: float
    speedup: float
    difference: float
    kept_mib: float | None = None
    peak_mib: float | None = None

    def as_dict(self) -> dict[str, object]:
        """The row as plain values, for JSON."""
        return asdict(self)


def run_evaluation(images: int, repeats: int) -> Iterator[EvaluationRow]:
    """Measure both evaluators of boxes on generated images."""
    truth = generate_truth(images)
    found = list(generate_detections(truth))
    results: dict[str, Any] = {}
    calls = {
        HOTCOCO: lambda: results.update({HOTCOCO: evaluate_hotcoco(truth, found, "bbox")}),
        PYCOCOTOOLS: lambda: results.update({PYCOCOTOOLS: evaluate_pycocotools(truth, found, "bbox")}),
    }
    # Neither has anything to warm up, and pycocotools takes a minute.
    seconds = take_turns(calls, torch.device("cpu"), repeats, warm_up=False)
    memory = in_own_process(_streaming_memory, images)
    for name, times in seconds.items():
        yield EvaluationRow(
            name,
            images,
            len(truth.annotations),
            statistics.median(times),
            median_ratio(times, seconds[HOTCOCO]),
            float(np.abs(results[name].stats - results[PYCOCOTOOLS].stats).max()),
            *(memory if name == HOTCOCO else (None, None)),
        )


def generate_truth(images: int) -> GroundTruth:
    """Random objects; one in a hundred is a crowd region."""
    generator = np.random.default_rng(0)
    count = round(images * _OBJECTS_AN_IMAGE)
    boxes = _random_boxes(generator, count)
    columns = zip(
        np.sort(generator.integers(1, images + 1, count)).tolist(),
        generator.integers(1, _CLASSES + 1, count).tolist(),
        boxes.tolist(),
        (boxes[:, 2] * boxes[:, 3] * generator.uniform(0.4, 1, count)).tolist(),
        (generator.random(count) < 0.01).astype(int).tolist(),
        strict=True,
    )
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return GroundTruth(
        [{"id": i, "file_name": f"{i}.jpg", "height": _SIZE[0], "width": _SIZE[1]} for i in range(1, images + 1)],
        [dict(zip(keys, values, strict=True)) for values in columns],
        [{"id": i, "name": f"class {i}"} for i in range(1, _CLASSES + 1)],
    )


def generate_detections(truth: GroundTruth) -> Iterator[Detections]:
    """For each image: up to three inexact finds of every object, and boxes at random with lower scores."""
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth.images}
    for annotation in truth.annotations:
        objects[annotation["image_id"]].append(annotation)
    for image_id, their_objects in objects.items():
        generator = np.random.default_rng((1, image_id))
        near = (their_objects * 3)[: _DETECTIONS // 2]
        rest = _DETECTIONS - len(near)
        exact = np.array([a["bbox"] for a in near]).reshape(-1, 4)
        boxes = exact + exact[:, [2, 3, 2, 3]] * generator.normal(0, 0.1, exact.shape)
        boxes[:, 2:] = boxes[:, 2:].clip(min=1)
        classes = np.array([a["category_id"] - 1 for a in near], dtype=np.int64)
        wrong = generator.random(len(near)) < 0.2
        classes[wrong] = generator.integers(0, _CLASSES, int(wrong.sum()))
        scores = np.concatenate([generator.beta(3, 2, len(near)), generator.beta(1, 8, rest)])
        yield Detections(
            image_id,
            np.concatenate([boxes, _random_boxes(generator, rest)]).astype(np.float32),
            scores.astype(np.float32),
            np.concatenate([classes, generator.integers(0, _CLASSES, rest)]),
            None,
            _SIZE,
        )


def evaluation_table(rows: Sequence[EvaluationRow]) -> Table:
    """Time, agreement and memory."""
    table = Table(
        caption=f"boxes, {_DETECTIONS} detections an image; difference: the largest of the 12 numbers, from 1; memory "
        "of the run's evaluator: kept of all images as they arrived, and more at most while it measures"
    )
    for heading in ("evaluator", "images", "objects"):
        table.add_column(heading)
    for heading in ("median", "speed-up", "difference", "kept", "peak"):
        table.add_column(heading, justify="right")
    for row in rows:
        memory = ("" if mib is None else f"{mib:.0f} MiB" for mib in (row.kept_mib, row.peak_mib))
        numbers = (f"{row.seconds:.2f} s", f"{row.speedup:.1f}x", f"{row.difference:.1e}")
        table.add_row(row.evaluator, str(row.images), str(row.objects), *numbers, *memory)
    return table


def _random_boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """`count×4`: x, y, width, height, of COCO's small, medium and large sizes, inside the image."""
    sides = np.exp(generator.normal(4, 0.9, (count, 2))).clip(4, np.array(_SIZE[::-1]))
    corners = generator.random((count, 2)) * (np.array(_SIZE[::-1]) - sides)
    return np.concatenate([corners, sides], axis=1)


def _streaming_memory(images: int) -> tuple[float, float]:
    """MiB that an evaluator keeps of a model's outputs as they arrive, and by which its metrics then exceed it."""
    truth = generate_truth(images)
    with tempfile.TemporaryDirectory() as folder:
        json_file = Path(folder) / "truth.json"
        annotations = [{**a, "id": number} for number, a in enumerate(truth.annotations, start=1)]
        json_file.write_text(
            json.dumps({"images": truth.images, "annotations": annotations, "categories": truth.categories})
        )
        register_coco("generated", json_file, folder)
        judge = COCOEvaluator("generated", ("bbox",), folder)
        arriving = generate_detections(truth)
        first = next(arriving)
        judge.process([{"image_id": first.image_id}], [_as_output(first)])
        before = resident_memory()
        for found in arriving:
            judge.process([{"image_id": found.image_id}], [_as_output(found)])
        kept = (resident_memory() - before) / MIB
        return kept, peak_memory(judge.evaluate, torch.device("cpu"))


def _as_output(found: Detections) -> dict[str, Any]:
    """Detections as a model gives them."""
    instances = Instances(found.size)
    corners = torch.from_numpy(found.boxes.copy())
    corners[:, 2:] += corners[:, :2]
    instances.pred_boxes = Boxes(corners)
    instances.scores = torch.from_numpy(found.scores)
    instances.pred_classes = torch.from_numpy(found.classes)
    return {"instances": instances}
