"""Detectors without non-maximum suppression as exportable graphs, without Detectron2's structures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvt_det.deployment.boxes import clip, not_empty, take
from pvt_det.deployment.image import Features
from pvt_det.modeling.query_detector import QueryDetector


class QueryGraph(nn.Module):
    """RT-DETRv2, DETR or Sparse R-CNN from images to detections: the highest scores of all queries and classes.

    Args:
        model: A trained detector. Its modules are shared, not copied.
        bgr: Whether the model takes BGR images.
    """

    outputs = ("boxes", "scores", "labels", "images")

    def __init__(self, model: QueryDetector, *, bgr: bool) -> None:
        super().__init__()
        self.features = Features(model, bgr=bgr)
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            image: Images `N×3×H×W`, RGB, uint8.

        Returns:
            Boxes `D×4` (x0, y0, x1, y1) in pixels, scores `D`, labels `D` (int64, from 0), and image indices in the
            batch `D` (int64), sorted by image, then by descending score.
        """
        number, _, height, width = image.shape
        maps = self.features(image)
        sides = [torch.full((number,), side, dtype=torch.float32, device=image.device) for side in (width, height)]
        logits, boxes = self.model.predict(
            [maps[name] for name in self.model.in_features], torch.stack(sides * 2, dim=1)
        )
        scores, labels, queries = self.model.rank(logits)
        boxes = clip(take(boxes, queries), height, width)
        images, position = (not_empty(boxes) & (scores > self.model.score_threshold)).nonzero().unbind(1)
        return boxes[images, position], scores[images, position], labels[images, position], images
