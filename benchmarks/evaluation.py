"""The evaluation suite: COCO metrics by hotcoco and pycocotools on generated detections."""

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

from benchmarks.measure import median_ratio, time_interleaved
from pvt_det.data.coco.registration import register_coco
from pvt_det.evaluation.coco import COCOEvaluator
from pvt_det.evaluation.detections import Detections
from pvt_det.evaluation.ground_truth import GroundTruth
from pvt_det.evaluation.metrics import evaluate_hotcoco, evaluate_pycocotools
from pvt_det.profiling import peak_memory, resident_memory, run_in_own_process

HOTCOCO = "hotcoco (pvt_det)"
PYCOCOTOOLS = "pycocotools"
# COCO val2017 has 5,000 images and about 36,000 objects of 80 classes. Detectors return 100 detections per image.
IMAGES = 5000
_OBJECTS_PER_IMAGE = 7.2
_CLASSES = 80
_DETECTIONS = 100
_SIZE = (480, 640)


@dataclass(frozen=True)
class EvaluationRow:
    """The result of one implementation.

    Attributes:
        implementation: `HOTCOCO` or `PYCOCOTOOLS`.
        images: Number of images, with 100 detections each.
        objects: Number of annotated objects.
        seconds: Median time from detections in memory to the 12 COCO metrics.
        speedup: This implementation's time divided by hotcoco's, as the median of the rounds' ratios.
        difference: Largest difference of the 12 metrics (0 to 1) from pycocotools.
        kept_mib: Memory in MiB that an evaluator needs to keep all detections; None for pycocotools.
        peak_mib: Additional peak memory in MiB of computing the metrics; None for pycocotools.
    """

    implementation: str
    images: int
    objects: int
    seconds: float
    speedup: float
    difference: float
    kept_mib: float | None = None
    peak_mib: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the attributes by name, for JSON."""
        return asdict(self)


def run_evaluation(images: int, repeats: int) -> Iterator[EvaluationRow]:
    """Compare both implementations of the box metrics.

    Args:
        images: Number of images to generate.
        repeats: Number of timed rounds.

    Yields:
        One row per implementation.
    """
    truth = generate_truth(images)
    found = list(generate_detections(truth))
    results: dict[str, Any] = {}
    calls = {
        HOTCOCO: lambda: results.update({HOTCOCO: evaluate_hotcoco(truth, found, "bbox")}),
        PYCOCOTOOLS: lambda: results.update({PYCOCOTOOLS: evaluate_pycocotools(truth, found, "bbox")}),
    }
    # No warm-up: neither implementation needs one, and pycocotools takes a minute.
    seconds = time_interleaved(calls, torch.device("cpu"), repeats, warm_up=False)
    memory = run_in_own_process(_streaming_memory, images)
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
    """Generate random objects, of which 1 % are crowd regions.

    Args:
        images: Number of images.
    """
    generator = np.random.default_rng(0)
    count = round(images * _OBJECTS_PER_IMAGE)
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
    """Generate 100 detections per image.

    Each object has up to three inexact detections. The others are random boxes with low scores.

    Args:
        truth: Images and their objects.

    Yields:
        The detections of each image.
    """
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth.images}
    for annotation in truth.annotations:
        objects[annotation["image_id"]].append(annotation)
    for image_id, image_objects in objects.items():
        generator = np.random.default_rng((1, image_id))
        near = (image_objects * 3)[: _DETECTIONS // 2]
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
    """Build the table of time, agreement and memory.

    Args:
        rows: Results of all implementations.
    """
    table = Table(
        caption=f"boxes, {_DETECTIONS} detections per image; speed-up: hotcoco over the implementation; difference: "
        "largest of the 12 metrics, from 0 to 1; kept: memory of all detections; peak: added by computing the metrics"
    )
    for heading in ("implementation", "images", "objects"):
        table.add_column(heading)
    for heading in ("median", "speed-up", "difference", "kept", "peak"):
        table.add_column(heading, justify="right")
    for row in rows:
        memory = ("" if mib is None else f"{mib:.0f} MiB" for mib in (row.kept_mib, row.peak_mib))
        numbers = (f"{row.seconds:.2f} s", f"{row.speedup:.1f}x", f"{row.difference:.1e}")
        table.add_row(row.implementation, str(row.images), str(row.objects), *numbers, *memory)
    return table


def _random_boxes(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes `count×4` (x, y, width, height in pixels) inside the image, with sizes as in COCO."""
    sides = np.exp(generator.normal(4, 0.9, (count, 2))).clip(4, np.array(_SIZE[::-1]))
    corners = generator.random((count, 2)) * (np.array(_SIZE[::-1]) - sides)
    return np.concatenate([corners, sides], axis=1)


def _streaming_memory(images: int) -> tuple[float, float]:
    """Return the memory in MiB that an evaluator keeps, and the additional peak of computing its metrics."""
    truth = generate_truth(images)
    with tempfile.TemporaryDirectory() as folder:
        json_file = Path(folder) / "truth.json"
        annotations = [{**a, "id": number} for number, a in enumerate(truth.annotations, start=1)]
        json_file.write_text(
            json.dumps({"images": truth.images, "annotations": annotations, "categories": truth.categories})
        )
        register_coco("generated", json_file, folder)
        evaluator = COCOEvaluator("generated", ("bbox",), folder)
        stream = generate_detections(truth)
        first = next(stream)
        evaluator.process([{"image_id": first.image_id}], [_as_output(first)])
        before = resident_memory()
        for found in stream:
            evaluator.process([{"image_id": found.image_id}], [_as_output(found)])
        kept = resident_memory() - before
        return kept, peak_memory(evaluator.evaluate, torch.device("cpu"))


def _as_output(found: Detections) -> dict[str, Any]:
    """Convert detections to the output of a model."""
    instances = Instances(found.size)
    corners = torch.from_numpy(found.boxes.copy())
    corners[:, 2:] += corners[:, :2]
    instances.pred_boxes = Boxes(corners)
    instances.scores = torch.from_numpy(found.scores)
    instances.pred_classes = torch.from_numpy(found.classes)
    return {"instances": instances}
