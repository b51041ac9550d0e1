"""Build the evaluator of a data set."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from pvt_det.config.architecture import is_panoptic
from pvt_det.evaluation.coco import build_evaluator as build_coco_evaluator
from pvt_det.evaluation.panoptic import PanopticEvaluator
from pvt_det.evaluation.semantic import SemanticEvaluator


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | Path) -> DatasetEvaluator:
    """Build the evaluator of a data set.

    It computes COCO AP, IoU for label maps, or both and panoptic quality for Panoptic FPN.

    Args:
        cfg: The run's config.
        dataset_name: Registered name of the data set.
        output_dir: Folder for the detections, and for the confusion matrix and predictions of label maps.

    Returns:
        The evaluator.

    Raises:
        ConfigError: If a key of `TEST` has an unknown value.
        DataError: If the ground truth cannot be used.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind == "sem_seg":
        return SemanticEvaluator(dataset_name, output_dir)
    coco = build_coco_evaluator(cfg, dataset_name, output_dir)
    if kind != "coco_panoptic_seg" or not is_panoptic(cfg):
        return coco
    return DatasetEvaluators(
        [coco, SemanticEvaluator(dataset_name, output_dir), PanopticEvaluator(dataset_name, output_dir)]
    )
