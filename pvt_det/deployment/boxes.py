"""Box operations on batched tensors with dynamic sizes, with the same results as Detectron2's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from pvt_det.deployment.suppression import ABSENT


def grid_anchors(like: Tensor, cell_anchors: Tensor, stride: int, offset: float) -> Tensor:
    """Compute the anchors of a feature map.

    Args:
        like: Feature map `N×C×H×W`; only its size and device are used.
        cell_anchors: Anchors of one cell, `A×4`.
        stride: Stride of the map in pixels.
        offset: Offset of the anchor centers in strides, in [0, 1).

    Returns:
        Anchors `(H·W·A)×4`, row by row.
    """
    height, width = like.shape[-2:]
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + offset) * stride
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + offset) * stride
    x, y = x[None, :].expand(height, width), y[:, None].expand(height, width)
    shifts = torch.stack([x, y, x, y], dim=-1)
    return (shifts[:, :, None] + cell_anchors).flatten(0, 2)


def apply_deltas(transform: Box2BoxTransform, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Apply predicted deltas to boxes. Shapes are broadcast.

    Args:
        transform: Detectron2's transform, of which the weights and the scale clamp are used.
        deltas: Deltas `…×4`.
        boxes: Boxes `…×4`, corners in pixels.

    Returns:
        Boxes `…×4`.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    center = boxes[..., :2] + 0.5 * size
    weights = torch.tensor(transform.weights, dtype=deltas.dtype, device=deltas.device)
    deltas = deltas / weights
    center = deltas[..., :2] * size + center
    half = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=transform.scale_clamp)) * size)
    return torch.cat([center - half, center + half], dim=-1)


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip boxes to an image.

    Args:
        boxes: Boxes `…×4`, corners in pixels.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def not_empty(boxes: Tensor, at_least: float = 0.0) -> Tensor:
    """Return a mask of the boxes whose sides are longer than `at_least`.

    Args:
        boxes: Boxes `…×4`, corners in pixels.
        at_least: Length in pixels that both sides must exceed.
    """
    return (boxes[..., 2:] - boxes[..., :2] > at_least).all(dim=-1)


def best(scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the highest scores and their indices, in descending order.

    Args:
        scores: Scores `N×M`.
        limit: Number of scores to return, k.

    Returns:
        Scores `N×k`, padded with `ABSENT` if M is less than k, and indices `N×k`.
    """
    # Always returns `limit` scores: data-dependent sizes make tracing slow, and some runtimes do not support them.
    padded = F.pad(scores, (0, limit), value=ABSENT)
    scores, index = padded.topk(limit, dim=1)
    return scores, index.clamp(max=padded.shape[1] - limit - 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows of each batch element.

    Args:
        values: Values `N×M×C`.
        index: Indices `N×k` of rows.

    Returns:
        Values `N×k×C`.
    """
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))


def present(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the scores that are not `ABSENT`.

    Args:
        scores: Scores `N×M`.

    Returns:
        Image indices `D` and positions `D`.
    """
    image, position = (scores > ABSENT).nonzero().unbind(1)
    return image, position
