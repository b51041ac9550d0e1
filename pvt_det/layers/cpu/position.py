"""Cache of resized position embeddings, so that CPU inference does not resize them for every image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pvt_det.layers.cpu.switch import use_fast_cpu
from pvt_det.layers.patch import Size
from pvt_det.layers.position import resize_position


class _Entry(NamedTuple):
    table: Tensor  # copy of the original embeddings
    resized: dict[Size, Tensor]


class PositionCache:
    """Cache of the resized position embeddings of the most recent map sizes, for inference on a CPU.

    Each call compares the embeddings with a copy, value by value. This costs a few percent of a resize and is the only
    reliable test, because PyTorch's version counters miss fused optimizers and writes through `.data`. The cache is not
    used while the embeddings are trained, so that gradients flow through the resize. It is not used on a GPU either,
    where the comparison would synchronize and take longer than the resize. Copies and pickles of a cache are empty.
    Threads can share a cache, because its content is never changed in place.

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
        """Return `resize_position(table, old, new)`, from the cache if possible.

        Args:
            table: Position embeddings `1×(old H · old W)×C`.
            old: Height and width in tokens of the map for which the embeddings were learned.
            new: Height and width in tokens of the current map.

        Returns:
            Position embeddings `1×(new H · new W)×C`.
        """
        needs_grad = torch.is_grad_enabled() and table.requires_grad
        if needs_grad or not use_fast_cpu(table) or old == new:
            return resize_position(table, old, new)
        entry = self._entry
        # Leave inference mode, so that cached tensors can be used in training later (by a frozen stage).
        with torch.inference_mode(False), torch.no_grad():
            if entry is None or entry.table.dtype != table.dtype or not torch.equal(entry.table, table):
                entry = _Entry(table.clone(), {})
            if new not in entry.resized:
                recent = list(entry.resized.items())[1 - self.capacity :] if self.capacity > 1 else []
                resized = resize_position(entry.table, old, new).contiguous()
                self._entry = entry = _Entry(entry.table, dict([*recent, (new, resized)]))
        return entry.resized[new]
