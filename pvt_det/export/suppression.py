"""Non-maximum suppression of whole batches, in two forms with the same outcome.

`suppress` is an operator that becomes ONNX's `NonMaxSuppression`; `suppress_by_torchvision` is what a `torch.export`
program holds, which nobody needs this package to load. The result has a fixed shape, so that nothing before it needs
sizes that depend on the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchvision.ops import nms

Suppress: TypeAlias = Callable[[Tensor, Tensor, float, int], Tensor]

# Scores of boxes that are not there.
ABSENT = float("-inf")


@torch.library.custom_op("pvt_det::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Mark the boxes that greedy suppression keeps, in each group by itself.

    Args:
        boxes: `N×M×4`, corners in pixels.
        scores: `N×G×M`, a row for each group of the M boxes; `ABSENT` where a box is not of the group.
        iou_threshold: Boxes that overlap a kept one by more are suppressed.
        limit: A group need not keep more boxes than this; those of the highest scores are kept.

    Returns:
        `N×G×M`, bool.
    """
    return suppress_by_torchvision(boxes, scores, iou_threshold, limit)


def suppress_by_torchvision(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """The same by torchvision; a group may keep more than `limit`."""
    image, group, box = (scores > ABSENT).nonzero().unbind(1)
    # Apart from one another the groups do not suppress each other; in double precision no digit is lost by that.
    corners = boxes[image, box].double()
    everything = boxes.double()
    span = everything.amax() - everything.amin() + 1
    apart = corners + ((image * scores.shape[1] + group) * span)[:, None]
    # torchvision tells tracing that at least 2 boxes are kept: two more, beside all others, make that true.
    low = everything.amin() - torch.tensor([2.0, 4.0], dtype=torch.double, device=boxes.device)
    more = torch.stack([low, low, low + 1, low + 1], dim=1)
    candidates = torch.cat([scores[image, group, box].double(), torch.zeros_like(low)])
    chosen = nms(torch.cat([apart, more]), candidates, iou_threshold)
    flags = torch.zeros_like(candidates, dtype=torch.bool)
    flags = flags.index_put((chosen,), torch.ones_like(chosen, dtype=torch.bool))[: image.shape[0]]
    return torch.zeros_like(scores, dtype=torch.bool).index_put((image, group, box), flags)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operator in ONNX, for `torch.onnx.export`."""
    from onnxscript import opset18 as op

    def to_onnx(boxes: Any, scores: Any, iou_threshold: float, limit: int) -> Any:
        lowest = torch.finfo(torch.float32).min
        chosen = op.NonMaxSuppression(boxes, scores, [limit], [iou_threshold], [lowest])
        nothing = op.Expand(op.Constant(value_floats=[0.0]), op.Shape(scores))
        ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(chosen, start=0, end=1))
        return op.Greater(op.ScatterND(nothing, chosen, ones), op.Constant(value_float=0.5))

    return {torch.ops.pvt_det.suppress.default: to_onnx}
