"""The evaluator that suits a data set."""

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
    """Evaluator of COCO's AP; of IoU for label maps; of both and panoptic quality for Panoptic FPN.

    Raises:
        ConfigError: a key of TEST has an unknown value.
        DataError: the ground truth cannot be used.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind == "sem_seg":
        return SemanticEvaluator(dataset_name)
    coco = build_coco_evaluator(cfg, dataset_name, output_dir)
    if kind != "coco_panoptic_seg" or not is_panoptic(cfg):
        return coco
    return DatasetEvaluators([coco, SemanticEvaluator(dataset_name), PanopticEvaluator(dataset_name, output_dir)])
