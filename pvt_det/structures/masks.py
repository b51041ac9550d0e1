"""Binary masks of one image as run lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy.typing as npt
import torch
from torch import Tensor

from pvt_det.structures.rle import decode, encode


class RunLengthMasks:
    """Masks kept as COCO's compressed run lengths: a sequence of `H×W` bool tensors, made when asked for.

    A hundred masks of a picture of 48 megapixels are 4.8 GB as a tensor, and some 100 kB so. Detectron2 takes them as
    the field `pred_masks` of `Instances`; `numpy.asarray` and `tensor` give all of them at once.

    Args:
        counts: run lengths of each mask.
        size: height and width in pixels.
    """

    def __init__(self, counts: Sequence[bytes], size: tuple[int, int]) -> None:
        self.counts = list(counts)
        self.size = size

    @classmethod
    def encode(cls, masks: Tensor) -> RunLengthMasks:
        """Encode `N×H×W` masks, bool or 0 and 1, of any device."""
        height, width = (int(side) for side in masks.shape[1:])
        # Transposed where the masks are, since a GPU does that faster; the runs go down the columns.
        columns = masks.detach().to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()
        return cls([rle["counts"] for rle in encode(columns.transpose(0, 2, 1))], (height, width))

    @classmethod
    def cat(cls, parts: Sequence[RunLengthMasks]) -> RunLengthMasks:
        """Join masks of one size."""
        assert len({part.size for part in parts}) == 1, [part.size for part in parts]
        return cls([counts for part in parts for counts in part.counts], parts[0].size)

    def rles(self) -> list[dict[str, Any]]:
        """The masks as COCO's tools take them."""
        return [{"size": list(self.size), "counts": counts} for counts in self.counts]

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(N, H, W)`."""
        return (len(self), *self.size)

    @property
    def tensor(self) -> Tensor:
        """All masks, `N×H×W` bool, on the CPU."""
        return torch.stack(list(self)) if len(self) else torch.zeros(self.shape, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, item: int) -> Tensor: ...
    @overload
    def __getitem__(self, item: slice | Tensor | Sequence[int]) -> RunLengthMasks: ...
    def __getitem__(self, item: int | slice | Tensor | Sequence[int]) -> Tensor | RunLengthMasks:
        """The mask of a number, `H×W` bool; or those that a slice, a list, or a bool or integer tensor selects."""
        if isinstance(item, int):
            (rle,) = RunLengthMasks([self.counts[item]], self.size).rles()
            return torch.from_numpy(decode(rle)).bool()
        chosen = torch.arange(len(self))[item.cpu() if isinstance(item, Tensor) else item]
        return RunLengthMasks([self.counts[index] for index in chosen.tolist()], self.size)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.tensor.numpy().astype(dtype or bool)

    def __repr__(self) -> str:
        return f"RunLengthMasks({len(self)} masks of {self.size[0]}x{self.size[1]})"
