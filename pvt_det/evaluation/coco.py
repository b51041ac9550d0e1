"""COCO evaluation of a detector: box and mask AP."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from pvt_det.config.table import require_valid
from pvt_det.errors import ConfigError
from pvt_det.evaluation.completeness import check_complete, unreadable_images
from pvt_det.evaluation.detections import Detections, pack_detections, write_results
from pvt_det.evaluation.ground_truth import (
    COCO_MAX_DETECTIONS,
    GroundTruth,
    check_ground_truth,
    load_ground_truth,
    write_ground_truth,
)
from pvt_det.evaluation.metrics import CocoMetrics, evaluate_hotcoco, evaluate_pycocotools
from pvt_det.utils.tables import class_table, metric_table
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"
GROUND_TRUTH_FILE = "ground_truth.json"
_EVALUATORS = {"hotcoco": evaluate_hotcoco, "pycocotools": evaluate_pycocotools}
_TITLES = {"bbox": "Box", "segm": "Mask"}


class COCOEvaluator(DatasetEvaluator):
    """Computes box and mask AP on a data set in COCO's format, gathered from all processes.

    Every image must be evaluated exactly once. Images that the loader marks as `unreadable` are excluded, also from the
    ground truth. Their number is logged.

    Args:
        dataset_name: Registered name of the data set.
        tasks: One or both of "bbox" and "segm".
        output_dir: Folder for `coco_instances_results.json`, and for the ground truth, `ground_truth.json`.
        evaluator: The library that computes AP, "hotcoco" or "pycocotools".
        max_detections: Largest number of detections per image that count. COCO's limit is 100.

    Raises:
        ConfigError: If `evaluator` is unknown.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...],
        output_dir: str | Path,
        *,
        evaluator: str = "hotcoco",
        max_detections: int = COCO_MAX_DETECTIONS,
    ) -> None:
        require_valid("TEST.EVALUATOR", evaluator)
        self.dataset_name = dataset_name
        self.tasks = tasks
        self.output_dir = Path(output_dir)
        self.results_file = self.output_dir / RESULTS_FILE
        self.evaluator = evaluator
        self.max_detections = max_detections
        self.reset()

    @cached_property
    def truth(self) -> GroundTruth:
        """The ground truth. Loaded on first access, because only the main process needs it, and once per run.

        Raises:
            DataError: If the annotations cannot be used.
        """
        metadata = MetadataCatalog.get(self.dataset_name)
        if metadata.get("coco_source") is not None or metadata.get("json_file") is not None:
            return load_ground_truth(metadata)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        return _convert(self.dataset_name, DatasetCatalog.data.get(self.dataset_name), self.output_dir)

    def reset(self) -> None:
        """Clear all detections."""
        self._detections: list[Detections] = []
        self._unreadable: list[int] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add a batch.

        Args:
            inputs: Records from the loader, with `image_id`.
            outputs: Outputs of the model, with `instances`.

        Raises:
            NumericError: If a box or score is NaN or infinite.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if record.get("unreadable"):
                self._unreadable.append(record["image_id"])
            else:
                self._detections.append(pack_detections(output["instances"], record["image_id"]))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Write the detections and the ground truth, and compute the metrics.

        Returns:
            On the main process, `{task: {metric: percent}}` with COCO's 12 metrics and `AP-<class>`. Metrics without
            ground truth are NaN. On other processes, an empty dictionary.

        Raises:
            ConfigError: If the model predicts more classes than the data set has.
            DataError: If images are missing, are repeated or do not belong to this data set.
        """
        gathered = comm.gather((self._detections, self._unreadable), dst=0)
        if not comm.is_main_process():
            return {}
        detections = [image for part, _ in gathered for image in part]
        unreadable = [image_id for _, part in gathered for image_id in part]
        evaluated = [*(image.image_id for image in detections), *unreadable]
        check_complete(self.dataset_name, evaluated, self.truth.image_ids)
        self._check_classes(detections)
        # The order decides between equal scores, so it must not depend on the number of processes.
        detections.sort(key=lambda image: image.image_id)
        write_results(self.results_file, detections, self.truth.category_ids)
        if unreadable:
            logger.warning("%s excluded from all metrics", unreadable_images(len(unreadable)))
        truth = self.truth.without(set(unreadable))
        write_ground_truth(self.output_dir / GROUND_TRUTH_FILE, truth, unreadable, masks="segm" in self.tasks)
        return {task: self._measure(task, truth, detections) for task in self.tasks}

    def _measure(self, task: str, truth: GroundTruth, detections: list[Detections]) -> dict[str, float]:
        if task == "segm":
            masked = truth.with_masks()
            if left_out := len(truth.annotations) - len(masked.annotations):
                logger.warning(
                    "%s no mask and %s excluded from mask AP",
                    counted(left_out, "object has", "objects have"),
                    "is" if left_out == 1 else "are",
                )
            truth = masked
        metrics = _EVALUATORS[self.evaluator](truth, detections, task, self.max_detections)
        names = [category["name"] for category in truth.categories]
        values = metrics.as_percent(names)
        self._log(task, metrics, values, sum(len(image.scores) for image in detections))
        return values

    def _log(self, task: str, metrics: CocoMetrics, values: dict[str, float], found: int) -> None:
        title = f"{_TITLES[task]} AP on {self.dataset_name} by {self.evaluator}, {counted(found, 'detection')}"
        if metrics.max_detections != COCO_MAX_DETECTIONS:
            title += f", at most {metrics.max_detections} per image (COCO: {COCO_MAX_DETECTIONS})"
        logger.info("%s\n%s", title, metric_table(values))
        if any(name.startswith("AP-") for name in values):
            logger.info("%s AP by class\n%s", _TITLES[task], class_table(values))

    def _check_classes(self, detections: list[Detections]) -> None:
        count = len(self.truth.categories)
        highest = max((int(image.classes.max()) for image in detections if len(image.classes)), default=-1)
        if highest >= count:
            raise ConfigError(
                f"the model predicts class {highest}, but {self.dataset_name} has the classes 0 to {count - 1}. "
                f"Set NUM_CLASSES to {count}."
            )


@lru_cache(maxsize=2)
def _convert(dataset_name: str, function: Callable[[], Any], folder: Path) -> GroundTruth:
    """Write the ground truth of a data set without an annotation file. `function` returns its records."""
    file = str(folder / f"{dataset_name}_coco_format.json")
    convert_to_coco_json(dataset_name, file, allow_cached=False)
    return check_ground_truth(file)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | Path) -> COCOEvaluator:
    """Build the evaluator of box AP, and of mask AP with `MODEL.MASK_ON`.

    The number of detections per image that count is `TEST.DETECTIONS_PER_IMAGE`, but at least COCO's 100.

    Args:
        cfg: The run's config.
        dataset_name: Registered name of the data set.
        output_dir: Folder for `coco_instances_results.json`.

    Returns:
        The evaluator.

    Raises:
        ConfigError: If `TEST.EVALUATOR` is unknown.
    """
    return COCOEvaluator(
        dataset_name,
        ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        output_dir,
        evaluator=cfg.TEST.EVALUATOR,
        max_detections=max(COCO_MAX_DETECTIONS, cfg.TEST.DETECTIONS_PER_IMAGE),
    )
