"""Learned position embeddings, resized to the map at hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pvt_det.layers.patch import Size


def resize_position(table: Tensor, old: Size, new: Size) -> Tensor:
    """Resize position embeddings bilinearly (corners not aligned), as the published code does.

    Args:
        table: `1×(old H · old W)×C`.
        old: Height and width that the table was made for, in tokens.
        new: Height and width wanted, in tokens.

    Returns:
        `1×(new H · new W)×C`; the table itself when the size does not change.
    """
    # A program compiled or exported for any size must not even ask whether it is this one.
    if not torch.compiler.is_compiling() and old == new:
        return table
    # PyTorch's CPU kernel is several times faster on plain than on channels-last memory here.
    grid = table.unflatten(1, old).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=new, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)


class _Kept(NamedTuple):
    table: Tensor  # a copy of the table as it was
    resized: dict[Size, Tensor]


class PositionCache:
    """Keeps the resized position embeddings of the last few sizes while no gradient is wanted, on a CPU.

    The table is compared with a copy of what it was, value by value: that costs a few hundredths of the resize, and is
    the only sure way, since PyTorch's version counters miss fused optimizers and writes through `.data`. While the
    table is being learned nothing is kept, and the gradient flows through the resize. A GPU resizes each time: there
    the comparison would stall it for longer than the resize takes. Copies and pickles of a cache start empty. Threads
    may share one: what it keeps is replaced as a whole, never changed.

    Args:
        capacity: Number of sizes kept.
    """

    def __init__(self, capacity: int = 4) -> None:
        self.capacity = capacity
        self._kept: _Kept | None = None

    def __reduce__(self) -> tuple[type[PositionCache], tuple[int]]:
        return PositionCache, (self.capacity,)

    def __len__(self) -> int:
        return 0 if self._kept is None else len(self._kept.resized)

    def get(self, table: Tensor, old: Size, new: Size) -> Tensor:
        """Return what `resize_position` returns, without computing it again when nothing changed."""
        learning = torch.is_grad_enabled() and table.requires_grad
        if torch.compiler.is_compiling() or learning or table.device.type != "cpu" or old == new:
            return resize_position(table, old, new)
        kept = self._kept
        # Outside inference mode, so that what is kept can take part in training later (a frozen stage).
        with torch.inference_mode(False), torch.no_grad():
            if kept is None or kept.table.dtype != table.dtype or not torch.equal(kept.table, table):
                kept = _Kept(table.clone(), {})
            if new not in kept.resized:
                recent = list(kept.resized.items())[1 - self.capacity :] if self.capacity > 1 else []
                resized = resize_position(kept.table, old, new).contiguous()
                self._kept = kept = _Kept(kept.table, dict([*recent, (new, resized)]))
        return kept.resized[new]
