"""Learned position embeddings, resized to the size of the map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_det.layers.patch import Size


def resize_position(table: Tensor, old: Size, new: Size) -> Tensor:
    """Resize position embeddings bilinearly (`align_corners=False`), as the published code does.

    Args:
        table: `1×(old H · old W)×C`.
        old: Height and width of the map that the table was learned for, in tokens.
        new: Height and width of the current map, in tokens.

    Returns:
        `1×(new H · new W)×C`; the table itself when the size does not change.
    """
    # A program compiled or exported for any size must not specialize on this one.
    if not torch.compiler.is_compiling() and old == new:
        return table
    # PyTorch's CPU kernel is several times faster on contiguous than on channels-last memory here.
    grid = table.unflatten(1, old).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=new, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
