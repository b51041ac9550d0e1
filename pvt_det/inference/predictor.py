"""A trained detector as a function from images to the objects in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import Instances

from pvt_det.config.architecture import is_segmentor
from pvt_det.errors import ConfigError
from pvt_det.inference.base import BasePredictor, class_names


class Predictor(BasePredictor[Instances]):
    """Finds objects in images with a trained detector.

    A call gives for one image, on the CPU and best score first, `Instances` in the image's own pixels with `pred_boxes`
    (`N×4`, x1, y1, x2, y2), `scores` (`N`, 0 … 1), `pred_classes` (`N`, numbers from 0) and, of a model with masks,
    `pred_masks` (N of `H×W` bool).

    Args:
        config: As of `BasePredictor`, like all others but one.
        weights: See there.
        overrides: See there.
        score_threshold: Least score, 0 … 1, of what is found; the config's own where it is None.
        batch_size: See there.
        device: See there.
    """

    def __init__(
        self,
        config: str | os.PathLike[str],
        weights: str | os.PathLike[str] = "",
        *,
        overrides: Sequence[str] = (),
        score_threshold: float | None = None,
        batch_size: int = 8,
        device: str = "",
    ) -> None:
        self._score_threshold = score_threshold
        super().__init__(config, weights, overrides=overrides, batch_size=batch_size, device=device)

    def _check(self, cfg: CfgNode, path: Path) -> tuple[str, ...]:
        if self._score_threshold is not None:
            _set_threshold(cfg, self._score_threshold)
        if is_segmentor(cfg):
            raise ConfigError(
                f"{path}: a model for semantic segmentation finds no objects; expected a detector. "
                "pvt_det.Segmentor takes it."
            )
        return class_names(cfg)

    def _run(self, records: list[dict[str, Any]]) -> list[Instances]:
        return [output["instances"].to("cpu") for output in self._outputs(records)]


def _set_threshold(cfg: CfgNode, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"score threshold {threshold}: expected a number from 0 to 1.")
    for head in (cfg.MODEL.RETINANET, cfg.MODEL.ROI_HEADS):
        head.SCORE_THRESH_TEST = threshold
