"""Batched non-maximum suppression, in two implementations with the same result.

`suppress` is a custom operator that is exported as ONNX's `NonMaxSuppression`. `suppress_by_torchvision` is for
`torch.export` programs, which then load without this package. The result has a fixed shape, so that nothing depends on
data-dependent sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchvision.ops import nms

Suppress: TypeAlias = Callable[[Tensor, Tensor, float, int], Tensor]

# Score of padding, which is not a box.
ABSENT = float("-inf")


@torch.library.custom_op("pvt_det::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Mark the boxes that greedy suppression keeps within each group.

    Args:
        boxes: Boxes `N×M×4`, corners in pixels.
        scores: Scores `N×G×M`, one row per group; `ABSENT` if a box does not belong to the group.
        iou_threshold: Boxes that overlap a kept box with a higher IoU are suppressed.
        limit: Number of boxes, those with the highest scores, after which a group may stop.

    Returns:
        Mask `N×G×M` of the kept boxes, bool.
    """
    return suppress_by_torchvision(boxes, scores, iou_threshold, limit)


def suppress_by_torchvision(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Compute the result of `suppress` with torchvision's `nms`.

    Args:
        boxes: Boxes `N×M×4`, corners in pixels.
        scores: Scores `N×G×M`, one row per group; `ABSENT` if a box does not belong to the group.
        iou_threshold: Boxes that overlap a kept box with a higher IoU are suppressed.
        limit: Not used: a group may keep more boxes than this.

    Returns:
        Mask `N×G×M` of the kept boxes, bool.
    """
    image, group, box = (scores > ABSENT).nonzero().unbind(1)
    # Shift the groups apart, so that they do not suppress each other. Double precision keeps the shifted boxes exact.
    corners = boxes[image, box].double()
    all_corners = boxes.double()
    span = all_corners.amax() - all_corners.amin() + 1
    shifted = corners + ((image * scores.shape[1] + group) * span)[:, None]
    # When traced, torchvision's nms assumes that it keeps at least 2 boxes: add two boxes apart from all others.
    low = all_corners.amin() - torch.tensor([2.0, 4.0], dtype=torch.double, device=boxes.device)
    extra = torch.stack([low, low, low + 1, low + 1], dim=1)
    candidates = torch.cat([scores[image, group, box].double(), torch.zeros_like(low)])
    chosen = nms(torch.cat([shifted, extra]), candidates, iou_threshold)
    flags = torch.zeros_like(candidates, dtype=torch.bool)
    flags = flags.index_put((chosen,), torch.ones_like(chosen, dtype=torch.bool))[: image.shape[0]]
    return torch.zeros_like(scores, dtype=torch.bool).index_put((image, group, box), flags)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ONNX translation of the operator, for `torch.onnx.export`."""
    from onnxscript import opset18 as op

    def to_onnx(boxes: Any, scores: Any, iou_threshold: float, limit: int) -> Any:
        lowest = torch.finfo(torch.float32).min
        chosen = op.NonMaxSuppression(boxes, scores, [limit], [iou_threshold], [lowest])
        zeros = op.Expand(op.Constant(value_floats=[0.0]), op.Shape(scores))
        ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(chosen, start=0, end=1))
        return op.Greater(op.ScatterND(zeros, chosen, ones), op.Constant(value_float=0.5))

    return {torch.ops.pvt_det.suppress.default: to_onnx}
