"""Predict label maps of images with a trained model for semantic segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from pvt_det.errors import ConfigError
from pvt_det.inference.base import BasePredictor, class_names, require_kind_of_model
from pvt_det.inference.pixels import Image
from pvt_det.inference.predictions import LabelMap
from pvt_det.modeling.finite import require_finite

# H×W label map of class indices.
Labels: TypeAlias = NDArray[np.uint8]
NO_CLASS = 255


class Segmentor(BasePredictor[LabelMap]):
    """Predicts the class of every pixel of an image with a trained Semantic FPN.

    A call returns the `LabelMap` of each image, an `H×W` uint8 array of the original size with the methods `plot`,
    `save` and `shares`. It contains the class index of each pixel, whose name is `class_names[index]`.

    Args:
        config: A run folder, a config file, or an exported file, such as "mine.onnx" or "mine_openvino".
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects `model_best.pth`, or
            otherwise `model_final.pth`, next to the config.
        overrides: Config keys and values, such as `["TEST.AUG.ENABLED", "True"]`.
        batch_size: Maximum number of images per forward pass, at least 1. Only images that have the same size after
            resizing are batched, because padding would change the predictions.
        device: Device such as "cuda:1", "mps" or "cpu". "" selects the first GPU if one is available.
        public_key: PEM file with which the signature of the config's folder is verified before anything in it is read.
            The weights must be a file in that folder. "" verifies nothing.
    """

    def _check(self, cfg: CfgNode, path: Path) -> tuple[str, ...]:
        require_kind_of_model(cfg, path, "Segmentor")
        count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if count > NO_CLASS:
            raise ConfigError(
                f"{path}: MODEL.SEM_SEG_HEAD.NUM_CLASSES = {count}: expected at most {NO_CLASS}, because label maps "
                "have 8 bits."
            )
        return class_names(cfg)

    def _run(self, records: list[dict[str, Any]]) -> list[Labels]:
        # Without the original size, Detectron2 does not resize the scores of all classes, which saves memory.
        outputs = self._outputs([{"image": record["image"]} for record in records])
        sizes = [(record["height"], record["width"]) for record in records]
        return [best_classes(output["sem_seg"], size) for output, size in zip(outputs, sizes, strict=True)]

    def _result(self, output: Labels, image: Image) -> LabelMap:
        return LabelMap(output, self.class_names, image)


def best_classes(scores: Tensor, size: tuple[int, int]) -> Labels:
    """Resize scores, and return the class with the highest score at each pixel.

    Args:
        scores: Scores `K×h×w` of at most 255 classes.
        size: Height and width of the result in pixels.

    Returns:
        Class indices `H×W`.

    Raises:
        NumericError: A score is NaN or infinite.
    """
    require_finite([scores], "scores")
    highest = scores.new_full(size, -torch.inf, dtype=torch.float32)
    labels = torch.full_like(highest, NO_CLASS, dtype=torch.uint8)
    # One class at a time: all of them would take 14 GB for 150 classes and an image of 24 megapixels.
    for index, class_scores in enumerate(scores.float()):
        resized = F.interpolate(class_scores[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        labels.masked_fill_(resized > highest, index)
        torch.maximum(highest, resized, out=highest)
    return labels.cpu().numpy()
