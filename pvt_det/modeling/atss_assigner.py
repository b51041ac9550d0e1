"""Adaptive Training Sample Selection (https://arxiv.org/abs/1912.02424, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor

from pvt_det.modeling.targets import pairwise_iou

# Distance in pixels that the center of a positive anchor keeps from the sides of its box.
_MARGIN = 0.01


@torch.no_grad()
def select_anchors(
    anchors: Sequence[Tensor],
    images: Sequence[Instances],
    sizes: Sequence[tuple[int, int]],
    *,
    topk: int,
    background: int,
) -> tuple[Tensor, Tensor]:
    """Match the anchors with the boxes of each image.

    The candidates of a box are the anchors of each level whose centers are the closest to its center. Candidates are
    positive if their IoU with the box is at least the mean plus the standard deviation of all candidates' IoU, and if
    their center is inside the box. An anchor that is positive for several boxes is matched with the one that it
    overlaps most.

    Args:
        anchors: Anchors of each level, `R_l×4` as (x1, y1, x2, y2), with positive area.
        images: Ground truth of each image, with `gt_boxes` and `gt_classes`, on the device of the anchors.
        sizes: Height and width of each image in pixels. Anchors whose center is beyond them are ignored, because they
            are in the padding of the batch.
        topk: Number of candidates of each box and level.
        background: Label of anchors without a match.

    Returns:
        Labels `N×R`, where R is the sum of all R_l: a class, `background`, or -1 to ignore. And matched boxes `N×R×4`,
        which are meaningful only for anchors with a class.
    """
    per_level = [len(level) for level in anchors]
    all_anchors = torch.cat(list(anchors))
    center_x, center_y = _centers(all_anchors)
    labels, matched = [], []
    for image, (height, width) in zip(images, sizes, strict=True):
        is_inside = (center_x < width) & (center_y < height)
        image_labels, boxes = torch.full_like(center_x, background, dtype=torch.int64), all_anchors
        if len(image):
            is_positive, match = _match(image.gt_boxes.tensor, all_anchors, is_inside, per_level, topk)
            image_labels = torch.where(is_positive, image.gt_classes[match], image_labels)
            boxes = image.gt_boxes.tensor[match]
        labels.append(image_labels.masked_fill_(~is_inside, -1))
        matched.append(boxes)
    return torch.stack(labels), torch.stack(matched)


def _match(
    boxes: Tensor, anchors: Tensor, is_inside: Tensor, per_level: Sequence[int], topk: int
) -> tuple[Tensor, Tensor]:
    """Return whether each anchor is positive `R`, and the box that it is matched with `R`.

    Args:
        boxes: Boxes of an image, `G×4`, where G is at least 1.
        anchors: Anchors of all levels, `R×4`.
        is_inside: Anchors that may be candidates, `R`.
        per_level: Number of anchors of each level.
        topk: Number of candidates of each box and level.
    """
    (anchor_x, anchor_y), (box_x, box_y) = _centers(anchors), _centers(boxes)
    distances = (anchor_x - box_x[:, None]).square_() + (anchor_y - box_y[:, None]).square_()
    candidates = _closest(distances.masked_fill_(~is_inside, torch.inf), per_level, topk)

    all_iou = pairwise_iou(boxes, anchors)
    iou = all_iou.gather(1, candidates)
    # Small images have fewer positions at a coarse level than candidates.
    counts = is_inside[candidates]
    number = counts.sum(dim=1, keepdim=True)
    mean = (iou * counts).sum(dim=1, keepdim=True) / number
    variance = ((iou - mean).square() * counts).sum(dim=1, keepdim=True) / (number - 1).clamp(min=1)

    x, y = anchor_x[candidates], anchor_y[candidates]
    left, top, right, bottom = boxes.T[:, :, None]
    is_centered = torch.stack([x - left, y - top, right - x, bottom - y]).amin(dim=0) > _MARGIN
    is_positive = counts & is_centered & (iou >= mean + variance.sqrt())

    quality = torch.full_like(all_iou, -1).scatter_(1, candidates, torch.where(is_positive, iou, -1))
    best, match = quality.max(dim=0)
    return best >= 0, match


def _closest(distances: Tensor, per_level: Sequence[int], topk: int) -> Tensor:
    """Return the indices of the smallest distances of each level, `G×C`, for distances `G×R`."""
    found, start = [], 0
    for level in distances.split(list(per_level), dim=1):
        found.append(level.topk(min(topk, level.shape[1]), dim=1, largest=False).indices + start)
        start += level.shape[1]
    return torch.cat(found, dim=1)


def _centers(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
