"""ATSS and GFL as exportable graphs, without Detectron2's structures."""

from __future__ import annotations

import torch
from detectron2.modeling.anchor_generator import BufferList
from torch import Tensor

from pvt_det.deployment.boxes import best, take
from pvt_det.deployment.retinanet import RetinaNetGraph, to_rows
from pvt_det.deployment.suppression import ABSENT, Suppress
from pvt_det.modeling.gfl import GFL


class ATSSGraph(RetinaNetGraph):
    """ATSS from images to detections. The scores are multiplied by the centerness."""

    def _candidates(self, outputs: tuple[Tensor, ...], anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, deltas, centerness = outputs
        scores = to_rows(logits, self.num_classes).sigmoid()
        weighted = scores * to_rows(centerness, 1).sigmoid()
        top, index = best(torch.where(scores > self.score_threshold, weighted, ABSENT).flatten(1), self.candidates)
        position = index // self.num_classes
        boxes = self._decode(take(to_rows(deltas, 4), position), anchors[position])
        return boxes, top, index % self.num_classes


class GFLGraph(RetinaNetGraph):
    """GFL from images to detections. The sides of the boxes are expectations of distributions.

    Args:
        model: A trained GFL. Its modules are shared, not copied.
        bgr: Whether the model takes BGR images.
        suppress: Function for non-maximum suppression, from `pvt_det.deployment.suppression`.
    """

    def __init__(self, model: GFL, *, bgr: bool, suppress: Suppress) -> None:
        super().__init__(model, bgr=bgr, suppress=suppress)
        values = torch.arange(model.box2box_transform.reg_max + 1, dtype=torch.float32)
        self.box_values = 4 * len(values)
        self.register_buffer("distances", values, persistent=False)
        # Distances are in units of the stride.
        corners = torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
        self.cell_anchors = BufferList([corners * stride for stride in self.strides])

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        distances = (deltas.unflatten(-1, (4, -1)).softmax(dim=-1) * self.distances).sum(dim=-1)
        size = anchors[..., 2:] - anchors[..., :2]
        center = anchors[..., :2] + size / 2
        return torch.cat([center - distances[..., :2] * size, center + distances[..., 2:] * size], dim=-1)
