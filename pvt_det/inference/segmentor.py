"""A trained model for semantic segmentation as a function from images to label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from pvt_det.config.architecture import is_segmentor
from pvt_det.errors import ConfigError
from pvt_det.inference.base import BasePredictor, class_names
from pvt_det.modeling.finite import require_finite

# H×W class numbers.
Labels: TypeAlias = NDArray[np.uint8]
NO_CLASS = 255


class Segmentor(BasePredictor[Labels]):
    """Gives every pixel of an image its class, with a trained Semantic FPN.

    A call gives for one image its label map, `H×W` of uint8, in the image's own pixels: the number of each pixel's
    class, whose name is `class_names[number]`. The arguments are those of `BasePredictor`.
    """

    def _check(self, cfg: CfgNode, path: Path) -> tuple[str, ...]:
        if not is_segmentor(cfg):
            raise ConfigError(
                f"{path}: {cfg.MODEL.META_ARCHITECTURE} finds objects; expected a model for semantic segmentation. "
                "pvt_det.Predictor takes it."
            )
        number = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if number > NO_CLASS:
            raise ConfigError(
                f"{path}: MODEL.SEM_SEG_HEAD.NUM_CLASSES = {number}: expected {NO_CLASS} or less, for label maps of "
                "8 bits."
            )
        return class_names(cfg)

    def _run(self, records: list[dict[str, Any]]) -> list[Labels]:
        # Left at the network's size, the scores of all classes and images stay small.
        outputs = self._outputs([{"image": record["image"]} for record in records])
        sizes = [(record["height"], record["width"]) for record in records]
        return [_best(output["sem_seg"], size) for output, size in zip(outputs, sizes, strict=True)]


def _best(scores: Tensor, size: tuple[int, int]) -> Labels:
    """The class of the highest score at each pixel of an image of `size`, from scores `K×h×w`."""
    require_finite([scores], "scores")
    highest = scores.new_full(size, -torch.inf, dtype=torch.float32)
    labels = torch.full_like(highest, NO_CLASS, dtype=torch.uint8)
    # Class by class: all at once would take 14 GB for 150 classes of a picture of 24 million pixels.
    for number, of_class in enumerate(scores.float()):
        enlarged = F.interpolate(of_class[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        labels.masked_fill_(enlarged > highest, number)
        torch.maximum(highest, enlarged, out=highest)
    return labels.cpu().numpy()
