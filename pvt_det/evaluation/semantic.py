"""Evaluation of semantic segmentation: mean IoU, pixel accuracy, and what is mistaken for what."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from hotcoco.semantic import SemanticEval

from pvt_det.errors import DataError, diverged
from pvt_det.evaluation.completeness import check_complete, unreadable_images
from pvt_det.evaluation.label_results import (
    BEST,
    SEGMENTATION_FILE,
    WORST,
    ImageResult,
    LabelResults,
    best_first,
    class_results,
    class_table,
    confusion_line,
    confusion_table,
    most_confused,
    segments_of,
    select_images,
    worst_first,
    write_label_results,
)
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
        output_dir: Folder for `segmentation.json` with the confusion matrix and the predictions for the images with the
            lowest and highest IoU. None writes no file.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.ignore_label: int = metadata.ignore_label
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        """Clear all predictions."""
        self._pixels = SemanticEval(self.class_names, ignore_index=self.ignore_label)
        self._files: list[str] = []
        self._unreadable = 0
        self._worst: list[ImageResult] = []
        self._best: list[ImageResult] = []

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
            predicted = classes.to(dtype).cpu().numpy()
            self._pixels.update(record["true_labels"], predicted)
            if self.output_dir is not None:
                self._keep(record["file_name"], record["true_labels"], predicted)

    def _keep(self, file_name: str, truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.integer]) -> None:
        """Keep the prediction if it is among the worst or the best so far. Only those are encoded."""
        image = ImageResult(file_name, *self._score(truth, predicted), segments=[])
        if np.isnan(image.iou):
            return
        worst, best = (
            sorted([*kept, image], key=key)[:most]
            for kept, key, most in ((self._worst, worst_first, WORST), (self._best, best_first, BEST))
        )
        if image in worst or image in best:
            image.segments.extend(segments_of(predicted))
        self._worst, self._best = worst, best

    def _score(self, truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.integer]) -> tuple[float, float]:
        """Return the mean IoU over the classes in an image, and its pixel accuracy, in percent. NaN without labels."""
        is_labeled = truth != self.ignore_label
        true, found = truth[is_labeled], predicted[is_labeled]
        if not true.size:
            return float("nan"), float("nan")
        number = max(len(self.class_names), int(found.max()) + 1)
        hits, areas, claimed = (np.bincount(each, minlength=number) for each in (true[true == found], true, found))
        occurs = areas > 0
        iou = hits[occurs] / (areas + claimed - hits)[occurs]
        return 100 * float(iou.mean()), 100 * float(hits.sum()) / true.size

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Compute the metrics, and write `segmentation.json`.

        Returns:
            On the main process, `{"sem_seg": {…}}` in percent: "mIoU", "fwIoU" (weighted by the pixels per class),
            "mACC", "pACC", "IoU-<class>" and "ACC-<class>". Classes without ground truth are NaN. On other processes,
            an empty dictionary.

        Raises:
            DataError: If images are missing, are repeated or do not belong to this data set.
        """
        gathered = comm.gather((self._pixels, self._unreadable, self._files, self._worst, self._best), dst=0)
        if not comm.is_main_process():
            return {}
        expected = (record["file_name"] for record in DatasetCatalog.get(self.dataset_name))
        check_complete(self.dataset_name, (file for part in gathered for file in part[2]), expected)
        pixels = SemanticEval(self.class_names, ignore_index=self.ignore_label)
        for part, *_ in gathered:
            pixels.merge(part)
        if unreadable := sum(part[1] for part in gathered):
            logger.warning("%s excluded from all metrics", unreadable_images(unreadable))
        images = select_images(*([each for part in gathered for each in part[place]] for place in (3, 4)))
        results = LabelResults(tuple(self.class_names), self.ignore_label, pixels.confusion().astype(np.int64), *images)
        if self.output_dir is not None:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_label_results(self.output_dir / SEGMENTATION_FILE, results)
        values = _percent(pixels)
        self._log(values, results, pixels.n_images)
        return {"sem_seg": values}

    def _log(self, values: dict[str, float], results: LabelResults, images: int) -> None:
        means = {name: value for name, value in values.items() if "-" not in name}
        parts = [metric_table(means), class_table(class_results(values, results))]
        if results.confusion.any():
            parts.append(confusion_table(results))
        if pairs := most_confused(results):
            parts.append("\n".join(["Most confused classes:", *(f"  {confusion_line(pair)}" for pair in pairs)]))
        logger.info(
            "Semantic segmentation of %s, %s\n%s", self.dataset_name, counted(images, "image"), "\n".join(parts)
        )


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
