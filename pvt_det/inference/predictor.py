"""Find objects in images with a trained detector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import Instances

from pvt_det.config.architecture import HEADS, head_key
from pvt_det.errors import ConfigError
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.inference.base import BasePredictor, class_names, require_kind_of_model
from pvt_det.inference.pixels import Image
from pvt_det.inference.predictions import Detections


class Predictor(BasePredictor[Detections]):
    """Finds objects in images with a trained detector.

    A call returns `Detections` for each image: Detectron2's `Instances` with the methods `plot`, `save` and `counts`.
    They are on the CPU, sorted by descending score and in pixels of the original image. The fields are `pred_boxes`
    (`N×4`: x1, y1, x2, y2), `scores` (`N`, 0 to 1), `pred_classes` (`N`, from 0) and, for a model with masks,
    `pred_masks` (N bool masks, `H×W`).

    Args:
        config: A run folder, a config file, or an exported file, such as "mine.onnx" or "mine_openvino".
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects `model_best.pth`, or
            otherwise `model_final.pth`, next to the config.
        overrides: Config keys and values, such as `["TEST.AUG.ENABLED", "True"]`.
        score_threshold: Minimum score of the detections, 0 to 1, by default 0.5 as in `pvt-det predict`. None uses the
            threshold of the config, which is low for evaluation. So does an override of SCORE_THRESH_TEST. An exported
            file refuses thresholds below its own.
        batch_size: Maximum number of images per forward pass, at least 1. Only images that have the same size after
            resizing are batched, because padding would change the predictions.
        device: Device such as "cuda:1", "mps" or "cpu". "" selects the first GPU if one is available.
        public_key: PEM file with which the signature of the config's folder is verified before anything in it is read.
            The weights must be a file in that folder. "" verifies nothing.
    """

    def __init__(
        self,
        config: str | os.PathLike[str],
        weights: str | os.PathLike[str] = "",
        *,
        overrides: Sequence[str] = (),
        score_threshold: float | None = SCORE_THRESHOLD,
        batch_size: int = 8,
        device: str = "",
        public_key: str | os.PathLike[str] = "",
    ) -> None:
        is_overridden = any(key.endswith("SCORE_THRESH_TEST") for key in overrides[::2])
        self._score_threshold = None if is_overridden else score_threshold
        super().__init__(
            config, weights, overrides=overrides, batch_size=batch_size, device=device, public_key=public_key
        )

    @property
    def score_threshold(self) -> float:
        """Minimum score of the detections, 0 to 1."""
        return self.cfg.MODEL[head_key(self.cfg)].SCORE_THRESH_TEST

    def _check(self, cfg: CfgNode, path: Path) -> tuple[str, ...]:
        if self._score_threshold is not None:
            _set_threshold(cfg, self._score_threshold)
        require_kind_of_model(cfg, path, "Predictor")
        return class_names(cfg)

    def _run(self, records: list[dict[str, Any]]) -> list[Instances]:
        found = [output["instances"].to("cpu") for output in self._outputs(records)]
        return found if self._score_threshold is None else [_above(each, self._score_threshold) for each in found]

    def _result(self, output: Instances, image: Image) -> Detections:
        return Detections.of(output, self.class_names, image)


def _above(instances: Instances, threshold: float) -> Instances:
    """Return the detections above a score. ATSS applies its threshold before it multiplies scores by the centerness."""
    is_above = instances.scores > threshold
    return instances if is_above.all() else instances[is_above]


def _set_threshold(cfg: CfgNode, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"score threshold {threshold}: expected a number from 0 to 1.")
    for section in HEADS:
        cfg.MODEL[section].SCORE_THRESH_TEST = threshold
