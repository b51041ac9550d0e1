"""A cache for resized position embeddings, which inference on a CPU would otherwise resize for every image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pvt_det.layers.cpu.switch import use_fast_cpu
from pvt_det.layers.patch import Size
from pvt_det.layers.position import resize_position


class _Entry(NamedTuple):
    table: Tensor  # a copy of the table that the others were resized from
    resized: dict[Size, Tensor]


class PositionCache:
    """Caches the resized position embeddings of the most recent map sizes, for inference on a CPU.

    Each call compares the table with a copy of it, value by value. That costs a few percent of a resize and is the
    only reliable test: PyTorch's version counters miss fused optimizers and writes through `.data`. The cache is not
    used while the table is being learned, so gradients flow through the resize, nor on a GPU, where the comparison
    would synchronize and take longer than the resize. Copies and pickles of a cache start empty. Threads may share a
    cache: its content is replaced as a whole, never changed in place.

    Args:
        capacity: Number of map sizes to cache.
    """

    def __init__(self, capacity: int = 4) -> None:
        self.capacity = capacity
        self._entry: _Entry | None = None

    def __reduce__(self) -> tuple[type[PositionCache], tuple[int]]:
        return PositionCache, (self.capacity,)

    def __len__(self) -> int:
        return 0 if self._entry is None else len(self._entry.resized)

    def get(self, table: Tensor, old: Size, new: Size) -> Tensor:
        """Return `resize_position(table, old, new)`, from the cache where possible.

        Args:
            table: `1×(old H · old W)×C`.
            old: Height and width of the map that the table was learned for, in tokens.
            new: Height and width of the current map, in tokens.
        """
        learning = torch.is_grad_enabled() and table.requires_grad
        if learning or not use_fast_cpu(table) or old == new:
            return resize_position(table, old, new)
        entry = self._entry
        # Outside inference mode, so that cached tensors can take part in training later (a frozen stage).
        with torch.inference_mode(False), torch.no_grad():
            if entry is None or entry.table.dtype != table.dtype or not torch.equal(entry.table, table):
                entry = _Entry(table.clone(), {})
            if new not in entry.resized:
                recent = list(entry.resized.items())[1 - self.capacity :] if self.capacity > 1 else []
                resized = resize_position(entry.table, old, new).contiguous()
                self._entry = entry = _Entry(entry.table, dict([*recent, (new, resized)]))
        return entry.resized[new]
