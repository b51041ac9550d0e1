"""Evaluation of semantic segmentation: mean IoU and pixel accuracy."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from hotcoco.semantic import SemanticEval

from pvt_det.errors import DataError, diverged
from pvt_det.evaluation.completeness import check_complete, unreadable_images
from pvt_det.utils.tables import metric_table
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)

_MAX_UINT8 = 255


class SemanticEvaluator(DatasetEvaluator):
    """Computes IoU and accuracy per class with hotcoco, gathered from all processes.

    Values and names match Detectron2. As there, a class without ground-truth pixels is excluded from all means. In the
    mean IoU of hotcoco and MMSegmentation, such a class counts as 0 if it is predicted. If every class occurs, as in
    ADE20K, all three agree.

    Every image must be evaluated exactly once. Images that the loader marks as `unreadable` are excluded, and their
    number is logged.

    Args:
        dataset_name: Registered name of the data set. Its metadata defines the class names and the label to ignore.
    """

    def __init__(self, dataset_name: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.ignore_label: int = metadata.ignore_label
        self.reset()

    def reset(self) -> None:
        """Clear all predictions."""
        self._pixels = SemanticEval(self.class_names, ignore_index=self.ignore_label)
        self._files: list[str] = []
        self._unreadable = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add a batch.

        Args:
            inputs: Records from the mapper, with `file_name` and the label map `true_labels` (`H×W`).
            outputs: Outputs of the model, with the logits `sem_seg` (`K×H×W`).

        Raises:
            DataError: If an image has no label map.
            NumericError: If the highest logit of a pixel is NaN or infinite.
        """
        for record, output in zip(inputs, outputs, strict=True):
            self._files.append(record["file_name"])
            if record.get("unreadable"):
                self._unreadable += 1
                continue
            if "true_labels" not in record:
                raise DataError(f"image {record['file_name']} of {self.dataset_name} has no label map.")
            # Checking the highest logits is enough, because `max` propagates NaN.
            highest, classes = output["sem_seg"].detach().max(dim=0)
            if not bool(torch.isfinite(highest).all()):
                raise diverged(f"image {record['file_name']}: the model predicts scores")
            dtype = torch.uint8 if len(output["sem_seg"]) <= _MAX_UINT8 + 1 else torch.int64
            self._pixels.update(record["true_labels"], classes.to(dtype).cpu().numpy())

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Compute the metrics.

        Returns:
            On the main process, `{"sem_seg": {…}}` in percent: "mIoU", "fwIoU" (weighted by the pixels per class),
            "mACC", "pACC", "IoU-<class>" and "ACC-<class>". Classes without ground truth are NaN. On other processes,
            an empty dictionary.

        Raises:
            DataError: If images are missing, are repeated or do not belong to this data set.
        """
        gathered = comm.gather((self._pixels, self._unreadable, self._files), dst=0)
        if not comm.is_main_process():
            return {}
        expected = (record["file_name"] for record in DatasetCatalog.get(self.dataset_name))
        check_complete(self.dataset_name, (file for *_, files in gathered for file in files), expected)
        pixels = SemanticEval(self.class_names, ignore_index=self.ignore_label)
        for part, _, _ in gathered:
            pixels.merge(part)
        if unreadable := sum(count for _, count, _ in gathered):
            logger.warning("%s excluded from all metrics", unreadable_images(unreadable))
        values = _percent(pixels)
        means = {name: value for name, value in values.items() if "-" not in name}
        logger.info(
            "Semantic segmentation of %s, %s\n%s",
            self.dataset_name,
            counted(pixels.n_images, "image"),
            metric_table(means),
        )
        return {"sem_seg": values}


def _percent(pixels: SemanticEval) -> dict[str, float]:
    results = pixels.results()
    classes = results["per_class"]
    has_truth = np.array([row["gt_area"] > 0 for row in classes], dtype=bool)
    iou = np.where(has_truth, [row["IoU"] for row in classes], np.nan) * 100
    accuracy = np.where(has_truth, [row["Acc"] for row in classes], np.nan) * 100
    nan = float("nan")
    values = {
        "mIoU": float(iou[has_truth].mean()) if has_truth.any() else nan,
        "fwIoU": 100 * results["fwIoU"] if has_truth.any() else nan,
        "mACC": float(accuracy[has_truth].mean()) if has_truth.any() else nan,
        "pACC": 100 * results["aAcc"] if has_truth.any() else nan,
    }
    names = [row["name"] for row in classes]
    values |= {f"IoU-{name}": float(value) for name, value in zip(names, iou, strict=True)}
    return values | {f"ACC-{name}": float(value) for name, value in zip(names, accuracy, strict=True)}
