"""Boxes in tensors with a batch dimension and open sizes, computed as Detectron2 does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from pvt_det.export.suppression import ABSENT


def grid_anchors(like: Tensor, cell_anchors: Tensor, stride: int, offset: float) -> Tensor:
    """Anchors of a map `N×C×H×W`: `(H·W·A)×4`, row by row, from the `A×4` anchors of a cell."""
    height, width = like.shape[-2:]
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + offset) * stride
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + offset) * stride
    x, y = x[None, :].expand(height, width), y[:, None].expand(height, width)
    shifts = torch.stack([x, y, x, y], dim=-1)
    return (shifts[:, :, None] + cell_anchors).flatten(0, 2)


def apply_deltas(transform: Box2BoxTransform, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Move boxes `…×4` by deltas `…×4`; the two are broadcast."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    weights = torch.tensor(transform.weights, dtype=deltas.dtype, device=deltas.device)
    deltas = deltas / weights
    centre = deltas[..., :2] * size + centre
    half = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=transform.scale_clamp)) * size)
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip boxes `…×4` to an image of that size."""
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def not_empty(boxes: Tensor, at_least: float = 0.0) -> Tensor:
    """Which of the boxes `…×4` have sides above `at_least`."""
    return (boxes[..., 2:] - boxes[..., :2] > at_least).all(dim=-1)


def best(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The `limit` highest of scores `N×M`, highest first, and their indices; `ABSENT` where M is less than that."""
    # A fixed number, whatever the image: sizes that depend on others make tracing slow, and some runtimes refuse them.
    padded = F.pad(scores, (0, limit), value=ABSENT)
    scores, index = padded.topk(limit, dim=1)
    return scores, index.clamp(max=padded.shape[1] - limit - 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows of values `N×M×C` at an index `N×k`."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def present(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Image and position, both `D`, of the scores `N×M` that are there."""
    image, position = (scores > ABSENT).nonzero().unbind(1)
    return image, position
