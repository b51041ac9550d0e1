"""RetinaNet as an exportable graph, without Detectron2's structures."""

from __future__ import annotations

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from pvt_det.deployment.boxes import apply_deltas, best, clip, grid_anchors, not_empty, present, take
from pvt_det.deployment.image import Features
from pvt_det.deployment.suppression import ABSENT, Suppress


class RetinaNetGraph(nn.Module):
    """RetinaNet from images to detections, and the base class of similar detectors.

    Args:
        model: A trained detector. Its modules are shared, not copied.
        bgr: Whether the model takes BGR images.
        suppress: Function for non-maximum suppression, from `pvt_det.deployment.suppression`.
    """

    outputs = ("boxes", "scores", "labels", "images")

    def __init__(self, model: DenseDetector, *, bgr: bool, suppress: Suppress) -> None:
        super().__init__()
        self.suppress = suppress
        self.features = Features(model, bgr=bgr)
        self.head = model.head
        self.names = list(model.head_in_features)
        generator = model.anchor_generator
        self.cell_anchors = generator.cell_anchors
        self.strides, self.offset = list(generator.strides), generator.offset
        self.transform = model.box2box_transform
        self.num_classes, self.box_values = model.num_classes, 4
        self.score_threshold, self.iou_threshold = model.test_score_thresh, model.test_nms_thresh
        self.candidates, self.limit = model.test_topk_candidates, model.max_detections_per_image

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            image: Images `N×3×H×W`, RGB, uint8.

        Returns:
            Boxes `D×4` (x0, y0, x1, y1) in pixels, scores `D`, labels `D` (int64, from 0), and image indices in the
            batch `D` (int64), sorted by image, then by descending score.
        """
        maps = self.features(image)
        features = [maps[name] for name in self.names]
        anchors = [
            grid_anchors(feature, cell, stride, self.offset)
            for feature, cell, stride in zip(features, self.cell_anchors, self.strides, strict=True)
        ]
        outputs = zip(*self.head(features), strict=True)
        levels = [self._candidates(*level) for level in zip(outputs, anchors, strict=True)]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))

        classes = torch.arange(self.num_classes, device=labels.device)
        by_class = torch.where(labels[:, None] == classes[:, None], scores[:, None], ABSENT)
        kept = self.suppress(boxes, by_class, self.iou_threshold, self.limit).any(dim=1)
        scores, index = best(torch.where(kept, scores, ABSENT), self.limit)
        boxes, labels = clip(take(boxes, index), *image.shape[-2:]), labels.gather(1, index)

        number, position = present(torch.where(not_empty(boxes), scores, ABSENT))
        return boxes[number, position], scores[number, position], labels[number, position], number

    def _candidates(self, outputs: tuple[Tensor, ...], anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes `N×k×4`, scores `N×k` and labels `N×k` of the highest scores of a level."""
        logits, deltas = outputs
        top, index = best(to_rows(logits, self.num_classes).flatten(1), self.candidates)
        scores = top.sigmoid()
        position = index // self.num_classes
        boxes = self._decode(take(to_rows(deltas, self.box_values), position), anchors[position])
        return boxes, torch.where(scores > self.score_threshold, scores, ABSENT), index % self.num_classes

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return boxes `N×k×4` for values `N×k×B` and anchors `N×k×4`."""
        return apply_deltas(self.transform, deltas, anchors)


def to_rows(output: Tensor, values: int) -> Tensor:
    """Reorder the output of a head to one row for each anchor.

    Args:
        output: Output of a level, `N×(A·C)×H×W`.
        values: Number of values of an anchor, C.

    Returns:
        Rows `N×(H·W·A)×C`.
    """
    return output.unflatten(1, (-1, values)).permute(0, 3, 4, 1, 2).flatten(1, 3)
