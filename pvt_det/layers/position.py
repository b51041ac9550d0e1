"""Resize learned position embeddings to the size of the feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_det.layers.patch import Size


def resize_position(table: Tensor, old: Size, new: Size) -> Tensor:
    """Resize position embeddings bilinearly (`align_corners=False`), as the published code does.

    Args:
        table: Position embeddings `1×(old H · old W)×C`.
        old: Height and width in tokens of the map for which the embeddings were learned.
        new: Height and width in tokens of the current map.

    Returns:
        Position embeddings `1×(new H · new W)×C`. If the size does not change, `table` itself.
    """
    # Graphs compiled or exported with dynamic sizes must not specialize on the current size.
    if not torch.compiler.is_compiling() and old == new:
        return table
    # Keep the channels-last view: PyTorch's CPU kernel is several times as fast on it as on a contiguous copy.
    grid = table.unflatten(1, old).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=new, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
