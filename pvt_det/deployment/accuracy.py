"""Accuracy of exported models on validation data."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from pvt_det.data.loader import build_detection_test_loader
from pvt_det.data.sets import register_datasets
from pvt_det.errors import ConfigError
from pvt_det.evaluation.build import build_evaluator
from pvt_det.runtimes.model import ExportedModel
from pvt_det.utils.logs import errors_only
from pvt_det.utils.progress import track

# The most important metric of each task.
_MAIN = ("AP", "mIoU", "PQ")


class Validation:
    """Measures models on the validation data of a config.

    Args:
        cfg: The config of the model. Its only data set in DATASETS.TEST, or the one in DATASETS.VAL_JSON or VAL_LABELS,
            is used.

    Raises:
        ConfigError: The config names no validation data, or several data sets.
        DataError: The data cannot be used.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.cfg.defrost()
        register_datasets(self.cfg, training=False)
        if len(self.cfg.DATASETS.TEST) != 1:
            raise ConfigError(
                f"--max-drop needs one validation data set, found {len(self.cfg.DATASETS.TEST)}. Give it with --set "
                "DATASETS.VAL_JSON and DATASETS.VAL_IMAGES, or leave --max-drop out."
            )
        (self.name,) = self.cfg.DATASETS.TEST
        self.records: Any = build_detection_test_loader(self.cfg, self.name).dataset

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def metrics(self, model: ExportedModel, indices: Sequence[int] | None = None) -> dict[str, float]:
        """Measure a model.

        Args:
            model: The model.
            indices: Indices of the images to use; None uses all.

        Returns:
            The main metric of each task in percent by name, such as `{"bbox AP": 40.4}`.
        """
        used = set(range(len(self)) if indices is None else indices)
        with tempfile.TemporaryDirectory(prefix="pvt_det_") as folder, errors_only("pvt_det.evaluation"):
            evaluator = build_evaluator(self.cfg, self.name, Path(folder))
            evaluator.reset()
            with torch.inference_mode(), track(f"measuring on {self.name}", len(self)) as advance:
                for index in range(len(self)):
                    self._process(evaluator, model, index, is_used=index in used)
                    advance()
            results: dict[str, dict[str, float]] = evaluator.evaluate()
        return {f"{task} {name}": values[name] for task, values in results.items() for name in _MAIN if name in values}

    def _process(self, evaluator: Any, model: ExportedModel, index: int, *, is_used: bool) -> None:
        if not is_used:
            # Evaluators leave images out of all metrics that could not be read.
            evaluator.process([self.records.records[index] | {"unreadable": True}], [{}])
            return
        record = self.records[index]
        if isinstance(record, Exception):
            raise record
        evaluator.process([record], model([record]))


def largest_drop(before: dict[str, float], after: dict[str, float]) -> float:
    """Return by how many percentage points the metric falls that falls most; negative if all rise.

    Args:
        before: Metrics by name. Those that are NaN, because the images have no objects, are left out.
        after: Metrics of the changed model, under the same names.
    """
    return max((before[name] - after[name] for name in before if not math.isnan(before[name])), default=0.0)
