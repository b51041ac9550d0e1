"""What each anchor is to predict: Detectron2's matching by IoU, without making a GPU wait for each image."""

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
    """Match the anchors with the boxes of each image.

    Args:
        anchors: `R×4`, of positive area.
        images: Each with `gt_boxes` and `gt_classes`, on the anchors' device.
        matcher: Its thresholds, its labels (1 for a match, 0 for background, -1 to ignore), and whether the anchors
            that a box overlaps most are matches whatever the overlap.
        background: Label of anchors without a match.

    Returns:
        Labels `N×R`, a class, `background`, or -1 to ignore; and boxes `N×R×4`, those that the anchors with a class are
        matched with, and anything at the others.
    """
    # The last one serves the images without boxes.
    boxes = torch.cat([*(image.gt_boxes.tensor for image in images), anchors.new_zeros(1, 4)])
    classes = torch.cat([*(image.gt_classes for image in images), torch.full_like(boxes[:1, 0], background).long()])
    first = [0, *accumulate(len(image) for image in images)]
    corners, areas = anchors.T.contiguous(), _areas(anchors)
    found = []
    for image, start in zip(images, first, strict=False):
        if len(image):
            # One image at a time: all IoUs of a batch would be too many to keep.
            best, match, is_boxs_best = _match(image.gt_boxes.tensor, corners, areas)
            found.append((best, match + start, is_boxs_best & matcher.allow_low_quality_matches))
        else:
            none = torch.full_like(areas, first[-1], dtype=torch.int64)
            found.append((torch.zeros_like(areas), none, torch.ones_like(none, dtype=torch.bool)))
    best, match, is_match = (torch.stack(parts) for parts in zip(*found, strict=True))

    kinds = torch.ones_like(best, dtype=torch.int8)
    for kind, low, high in zip(matcher.labels, matcher.thresholds[:-1], matcher.thresholds[1:], strict=True):
        kinds.masked_fill_((best >= low) & (best < high), kind)
    kinds.masked_fill_(is_match, 1)
    labels = classes[match].masked_fill_(kinds == 0, background).masked_fill_(kinds == -1, -1)
    return labels, boxes[match]


def _match(boxes: Tensor, corners: Tensor, areas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each anchor: its best IoU, the box it has that with, and whether a box has no better IoU with any anchor."""
    iou = _iou(boxes, corners, areas)
    best, match = iou.max(dim=0)
    return best, match, (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)


def _iou(boxes: Tensor, corners: Tensor, areas: Tensor) -> Tensor:
    """IoU of boxes `G×4` with anchors, whose corners `4×R` and areas `R` are given: `G×R`, in few tensors of that size.

    Operations are in Detectron2's order, and so rounded alike; areas above 0 make the union so.
    """
    x0, y0, x1, y1 = boxes.T[:, :, None]
    intersection = torch.minimum(x1, corners[2]).sub_(torch.maximum(x0, corners[0])).clamp_(min=0)
    intersection *= torch.minimum(y1, corners[3]).sub_(torch.maximum(y0, corners[1])).clamp_(min=0)
    return intersection.div_((_areas(boxes)[:, None] + areas).sub_(intersection))


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
