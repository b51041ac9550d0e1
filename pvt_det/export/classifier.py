"""A classifier with its normalisation."""

from __future__ import annotations

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from pvt_det.export.image import Normalize
from pvt_det.models.trunk import Trunk


class ClassifierGraph(nn.Module):
    """Images to the probabilities of classes.

    Args:
        model: A trained classifier; shares its modules.
    """

    outputs = ("scores",)

    def __init__(self, model: Trunk) -> None:
        super().__init__()
        mean, std = (255 * torch.tensor(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        self.normalize = Normalize(mean, std, bgr=False)
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Classify images `N×3×H×W`, RGB, uint8: probabilities `N×K`."""
        return self.model(self.normalize(image)).softmax(dim=1)
