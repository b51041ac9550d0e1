"""Evaluation of semantic segmentation: mean IoU and pixel accuracy."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from hotcoco.semantic import SemanticEval

from pvt_det.errors import DataError, diverged
from pvt_det.utils.tables import metric_table

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """Per-class IoU and accuracy by hotcoco, gathered from all processes; the numbers and names are Detectron2's.

    A class that has no pixel in the ground truth counts in no mean, as in Detectron2; in hotcoco's own mean IoU, as in
    MMSegmentation's, it counts as 0 once it is predicted. Where every class occurs, as in ADE20K, all three agree.

    Images that the loader marks `unreadable` are left out, and counted in the log.

    Args:
        dataset_name: Registered name; class names and the value to ignore come from its metadata.
    """

    def __init__(self, dataset_name: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.ignore_label: int = metadata.ignore_label
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._pixels = SemanticEval(self.class_names, ignore_index=self.ignore_label)
        self._unreadable = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add a batch.

        Args:
            inputs: The mapper's records, with `true_labels`, `H×W`.
            outputs: The model's, with `sem_seg`, logits `K×H×W`.

        Raises:
            DataError: An image has no label map.
            NumericError: A logit is NaN or infinite.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if record.get("unreadable"):
                self._unreadable += 1
                continue
            if "true_labels" not in record:
                raise DataError(f"image {record['file_name']} of {self.dataset_name} has no label map to compare with")
            # Only the highest logits are looked at; NaN counts as highest.
            highest, classes = output["sem_seg"].detach().max(dim=0)
            if not bool(torch.isfinite(highest).all()):
                raise diverged(f"image {record['file_name']}: the model gives scores")
            self._pixels.update(record["true_labels"], classes.to(torch.uint8).cpu().numpy())

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Measure.

        Returns:
            On the main process `{"sem_seg": {…}}` in percent: "mIoU", "fwIoU" (weighted by the classes' pixels),
            "mACC", "pACC", and "IoU-<class>", "ACC-<class>", NaN for classes without ground truth; elsewhere nothing.
        """
        gathered = comm.gather((self._pixels, self._unreadable), dst=0)
        if not comm.is_main_process():
            return {}
        pixels = SemanticEval(self.class_names, ignore_index=self.ignore_label)
        for part, _ in gathered:
            pixels.merge(part)
        if unreadable := sum(count for _, count in gathered):
            logger.warning("%d images could not be read; all numbers are of the rest", unreadable)
        values = _percent(pixels)
        means = {name: value for name, value in values.items() if "-" not in name}
        logger.info(
            "Semantic segmentation of %s, %d images\n%s", self.dataset_name, pixels.n_images, metric_table(means)
        )
        return {"sem_seg": values}


def _percent(pixels: SemanticEval) -> dict[str, float]:
    results = pixels.results()
    classes = results["per_class"]
    there = np.array([row["gt_area"] > 0 for row in classes], dtype=bool)
    iou = np.where(there, [row["IoU"] for row in classes], np.nan) * 100
    accuracy = np.where(there, [row["Acc"] for row in classes], np.nan) * 100
    nothing = float("nan")
    values = {
        "mIoU": float(iou[there].mean()) if there.any() else nothing,
        "fwIoU": 100 * results["fwIoU"] if there.any() else nothing,
        "mACC": float(accuracy[there].mean()) if there.any() else nothing,
        "pACC": 100 * results["aAcc"] if there.any() else nothing,
    }
    names = [row["name"] for row in classes]
    values |= {f"IoU-{name}": float(value) for name, value in zip(names, iou, strict=True)}
    return values | {f"ACC-{name}": float(value) for name, value in zip(names, accuracy, strict=True)}
