"""Semantic FPN without Detectron2's structures, from the same weights."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.modeling.meta_arch.semantic_seg import SemanticSegmentor, SemSegFPNHead
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.export.image import Features


class SegmentorGraph(nn.Module):
    """Images to a class for every pixel.

    Args:
        model: A trained segmentor; shares its modules.
        bgr: Whether the model takes blue first.

    Raises:
        ConfigError: The head is no Semantic FPN.
    """

    outputs = ("labels", "scores")

    def __init__(self, model: SemanticSegmentor, *, bgr: bool) -> None:
        super().__init__()
        if not isinstance(model.sem_seg_head, SemSegFPNHead):
            raise ConfigError(f"a segmentor with {type(model.sem_seg_head).__name__} cannot be exported.")
        self.features = Features(model, bgr=bgr)
        self.head = model.sem_seg_head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segment images `N×3×H×W`, RGB, uint8: labels `N×H×W` (int64, from 0) and their probabilities `N×H×W`."""
        logits = self.head.layers(self.features(image))
        logits = F.interpolate(logits, scale_factor=self.head.common_stride, mode="bilinear", align_corners=False)
        scores, labels = logits[:, :, : image.shape[2], : image.shape[3]].softmax(dim=1).max(dim=1)
        return labels, scores
