"""Match anchors with ground-truth boxes by IoU, without synchronizing with the GPU for each image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Instances
from torch import Tensor


@torch.no_grad()
def match_anchors(
    anchors: Tensor, images: Sequence[Instances], matcher: Matcher, background: int
) -> tuple[Tensor, Tensor]:
    """Match the anchors with the boxes of each image, as Detectron2 does.

    Args:
        anchors: Anchors `R×4` as (x1, y1, x2, y2), with positive area.
        images: Ground truth of each image, with `gt_boxes` and `gt_classes`, on the device of the anchors.
        matcher: Matcher whose settings are used: its IoU thresholds, its labels (1 for a match, 0 for background, -1 to
            ignore), and whether the best anchor of each box is a match even if its IoU is low.
        background: Label of anchors without a match.

    Returns:
        Labels `N×R`: a class, `background`, or -1 to ignore. And matched boxes `N×R×4`, which are meaningful only for
        anchors with a class.
    """
    # The last box and class are a dummy for images without boxes.
    boxes = torch.cat([*(image.gt_boxes.tensor for image in images), anchors.new_zeros(1, 4)])
    classes = torch.cat([*(image.gt_classes for image in images), torch.full_like(boxes[:1, 0], background).long()])
    first = [0, *accumulate(len(image) for image in images)]
    matches = []
    for image, start in zip(images, first, strict=False):
        if len(image):
            # Process one image at a time, because the IoUs of a whole batch would take too much memory.
            best, match, is_best_of_box = _match(image.gt_boxes.tensor, anchors)
            matches.append((best, match + start, is_best_of_box & matcher.allow_low_quality_matches))
        else:
            dummy = torch.full_like(anchors[:, 0], first[-1], dtype=torch.int64)
            matches.append((torch.zeros_like(anchors[:, 0]), dummy, torch.ones_like(dummy, dtype=torch.bool)))
    best, match, is_match = (torch.stack(tensors) for tensors in zip(*matches, strict=True))

    match_labels = torch.ones_like(best, dtype=torch.int8)
    for label, low, high in zip(matcher.labels, matcher.thresholds[:-1], matcher.thresholds[1:], strict=True):
        match_labels.masked_fill_((best >= low) & (best < high), label)
    match_labels.masked_fill_(is_match, 1)
    labels = classes[match].masked_fill_(match_labels == 0, background).masked_fill_(match_labels == -1, -1)
    return labels, boxes[match]


def _match(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best IoU and box of each anchor, and whether the anchor is the best one of any box."""
    iou = pairwise_iou(boxes, anchors)
    best, match = iou.max(dim=0)
    return best, match, (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Compute the IoU of every box with every anchor.

    Allocates few tensors of the size of the result. Operations have the same order as in Detectron2, and so the same
    rounding.

    Args:
        boxes: Boxes `G×4` as (x1, y1, x2, y2).
        anchors: Anchors `R×4`, with positive area, so that unions are positive.

    Returns:
        IoUs `G×R`.
    """
    x0, y0, x1, y1 = boxes.T[:, :, None]
    left, top, right, bottom = anchors.T.contiguous()
    intersection = torch.minimum(x1, right).sub_(torch.maximum(x0, left)).clamp_(min=0)
    intersection *= torch.minimum(y1, bottom).sub_(torch.maximum(y0, top)).clamp_(min=0)
    return intersection.div_((_areas(boxes)[:, None] + _areas(anchors)).sub_(intersection))


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
