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
    if old == new:
        return table
    # PyTorch's CPU kernel is several times faster on plain than on channels-last memory here.
    grid = table.unflatten(1, old).permute(0, 3, 1, 2)
    return F.interpolate(grid, size=new, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)


class _Entry(NamedTuple):
    source: Tensor
    version: int
    resized: Tensor


class PositionCache:
    """Keeps the resized position embeddings of the last few sizes while no gradient is wanted.

    An entry belongs to one state of one table: it is used only as long as the table is the same memory and was not
    written to since (an optimizer step and `load_state_dict` both count as writing). It holds on to that memory, so the
    address cannot come to mean something else. While the table is being learned nothing is kept, and the gradient
    flows through the resize. Copies and pickles of a cache start empty. Threads may share one: the entries are
    replaced as a whole, never changed.

    Args:
        capacity: Number of sizes kept.
    """

    def __init__(self, capacity: int = 4) -> None:
        self.capacity = capacity
        self._entries: dict[Size, _Entry] = {}

    def __reduce__(self) -> tuple[type[PositionCache], tuple[int]]:
        return PositionCache, (self.capacity,)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, table: Tensor, old: Size, new: Size) -> Tensor:
        """Return what `resize_position` returns, without computing it again when nothing changed."""
        learning = torch.is_grad_enabled() and table.requires_grad
        if old == new or learning or torch.compiler.is_compiling() or table.is_inference():
            return resize_position(table, old, new)
        entry = self._entries.get(new)
        if entry is not None and _is_current(entry, table):
            return entry.resized
        # Outside inference mode, so that the entry can take part in training later (a frozen stage).
        with torch.inference_mode(False), torch.no_grad():
            entry = _Entry(table.detach(), table._version, resize_position(table, old, new).contiguous())
        others = [(size, kept) for size, kept in self._entries.items() if size != new and _is_current(kept, table)]
        self._entries = dict([*others[-(self.capacity - 1) :], (new, entry)])
        return entry.resized


def _is_current(entry: _Entry, table: Tensor) -> bool:
    return (
        entry.version == table._version
        and entry.source.data_ptr() == table.data_ptr()
        and entry.source.dtype == table.dtype
        and entry.source.device == table.device
        and entry.source.stride() == table.stride()
    )
