"""Memory and open files of long runs, and peak memory of a large evaluation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances
from rich.console import Console

from pvt_det.data.coco.registration import register_coco
from pvt_det.data.loader import build_detection_train_loader
from pvt_det.data.sets import register_datasets
from pvt_det.engine.trainer import PVTTrainer
from pvt_det.errors import Interrupted
from pvt_det.evaluation.coco import COCOEvaluator
from pvt_det.utils.files import write_atomically
from tests.drills.outcome import Outcome, children, open_files, resident_bytes
from tests.drills.tiny import tiny_config

# Maximum growth in bytes from the second fifth of the time, after the warm-up, to the last fifth.
MAX_GROWTH = 20 * 2**20
_SAMPLE_SECONDS = 1.0
_MANY_ITERATIONS = 10_000_000


class _ResourceMonitor:
    """Samples the memory of this process and its children, and its open files, once per second."""

    def __init__(self, minutes: float) -> None:
        self._start, self._seconds = time.monotonic(), 60 * minutes
        self._samples: list[tuple[float, int, int]] = []

    def is_over(self) -> bool:
        """Take a sample if it is due, and return whether the time is over."""
        now = time.monotonic() - self._start
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            memory = resident_bytes() + sum(map(resident_bytes, children()))
            self._samples.append((now, memory, open_files()))
        return now >= self._seconds

    def report(self, outcome: Outcome) -> Outcome:
        """Add the growth and any failures to an outcome."""
        early, late = (self._part(fifth) for fifth in (1, 4))
        if not early or not late:
            outcome.failures.append("too short to compare. Increase --minutes")
            return outcome
        growth = statistics.median(m for _, m, _ in late) - statistics.median(m for _, m, _ in early)
        files = sorted({count for _, _, count in [*early, *late]})
        outcome.facts |= {
            "memory": f"{statistics.median(m for _, m, _ in late) / 2**20:.0f} MiB, growth {growth / 2**20:+.1f} MiB",
            "open files": f"{files[0]} to {files[-1]}",
            "minutes": f"{self._samples[-1][0] / 60:.1f}",
        }
        if growth > MAX_GROWTH:
            outcome.failures.append(f"memory grew by {growth / 2**20:.1f} MiB")
        if statistics.median(f for *_, f in late) > statistics.median(f for *_, f in early):
            outcome.failures.append("the number of open files grew")
        return outcome

    def _part(self, fifth: int) -> list[tuple[float, int, int]]:
        length = self._seconds / 5
        return [sample for sample in self._samples if length * fifth <= sample[0] < length * (fifth + 1)]


def run_loader(folder: Path, config_file: str, minutes: float, workers: int = 2) -> Outcome:
    """Read training batches and monitor memory and open files.

    Args:
        folder: Folder for the data.
        config_file: Config of the detector, of which a tiny version is used.
        minutes: Duration in minutes.
        workers: Number of data loader workers, whose memory is included.
    """
    cfg = tiny_config(config_file, folder, folder / "loader", {"DATALOADER.NUM_WORKERS": workers, "SEED": 0})
    register_datasets(cfg)
    outcome, monitor = Outcome("loader"), _ResourceMonitor(minutes)
    for _ in build_detection_train_loader(cfg):
        outcome.tried += 1
        if monitor.is_over():
            break
    return monitor.report(outcome)


class _StopWhenOver(HookBase):
    """Stops the trainer by SIGTERM, like a scheduler, when the time is over."""

    def __init__(self, monitor: _ResourceMonitor) -> None:
        self._monitor = monitor
        self.iterations = 0

    def after_step(self) -> None:
        self.iterations += 1
        if self._monitor.is_over():
            os.kill(os.getpid(), signal.SIGTERM)


def run_training(folder: Path, config_file: str, minutes: float) -> Outcome:
    """Train with a checkpoint every 50 iterations, and monitor memory and open files.

    Args:
        folder: Folder for the data and the run.
        config_file: Config of the detector, of which a tiny version is used.
        minutes: Duration in minutes.
    """
    settings = {"SOLVER.MAX_ITER": _MANY_ITERATIONS, "SOLVER.CHECKPOINT_PERIOD": 50, "SEED": 0}
    cfg = tiny_config(config_file, folder, folder / "training", settings)
    register_datasets(cfg)
    trainer = PVTTrainer(cfg, console=Console(quiet=True))
    monitor = _ResourceMonitor(minutes)
    hook = _StopWhenOver(monitor)
    trainer.register_hooks([hook])
    with contextlib.suppress(Interrupted):
        trainer.train()
    return monitor.report(Outcome("training", tried=hook.iterations))


def run_evaluation(folder: Path, images: int, detections: int) -> Outcome:
    """Evaluate random boxes, and report the peak memory of this process.

    Args:
        folder: Folder for the ground truth.
        images: Number of images.
        detections: Number of detections per image.
    """
    name = f"{folder}/peak"
    write_atomically(folder / "peak.json", _random_truth(images))
    register_coco(name, folder / "peak.json", folder)
    evaluator = COCOEvaluator(name, ("bbox",), folder)
    for record, output in _random_outputs(images, detections):
        evaluator.process([record], [output])
    start = time.perf_counter()
    metrics = evaluator.evaluate()["bbox"]
    peak = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
    facts = {
        "peak memory": f"{peak / 2**20:.2f} GiB",
        "seconds to measure": f"{time.perf_counter() - start:.0f}",
        "AP": f"{metrics['AP']:.2f}",
    }
    outcome = Outcome("evaluation", images, facts=facts)
    if peak > 3 * 2**20:
        outcome.failures.append("the process used more than 3 GiB")
    return outcome


_CLASSES, _OBJECTS, _SIZE = 80, 7, (480, 640)


def _random_truth(images: int) -> str:
    generator = np.random.default_rng(0)
    boxes = _random_boxes(generator, images * _OBJECTS).round(2).tolist()
    records: list[dict[str, Any]] = [
        {"id": i, "file_name": f"{i}.jpg", "width": _SIZE[1], "height": _SIZE[0]} for i in range(images)
    ]
    objects = [
        {"id": n, "image_id": n // _OBJECTS, "category_id": n % _CLASSES, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for n, b in enumerate(boxes)
    ]
    classes = [{"id": number, "name": f"class {number}"} for number in range(_CLASSES)]
    return json.dumps({"images": records, "annotations": objects, "categories": classes})


def _random_outputs(images: int, detections: int) -> Iterator[tuple[dict[str, Any], dict[str, Instances]]]:
    generator = np.random.default_rng(1)
    for image_id in range(images):
        boxes = torch.from_numpy(_random_boxes(generator, detections)).float()
        boxes[:, 2:] += boxes[:, :2]
        found = Instances(_SIZE, pred_boxes=Boxes(boxes), scores=torch.rand(detections))
        found.pred_classes = torch.randint(_CLASSES, (detections,))
        yield {"image_id": image_id}, {"instances": found}


def _random_boxes(generator: np.random.Generator, number: int) -> np.ndarray:
    """Return boxes `N×4` (x, y, width, height in pixels) inside the image."""
    size = np.array(_SIZE[::-1])
    corner = generator.uniform(0, 0.7, (number, 2)) * size
    return np.hstack([corner, generator.uniform(0.02, 0.3, (number, 2)) * size])
