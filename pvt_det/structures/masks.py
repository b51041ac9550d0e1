"""A memory-efficient container of an image's binary masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy.typing as npt
import torch
from torch import Tensor

from pvt_det.structures.rle import decode, encode


class RunLengthMasks:
    """A sequence of `H×W` bool masks, stored as run lengths and decoded on access.

    The format is COCO's compressed RLE. A hundred masks of a 48-megapixel image take 4.8 GB as a tensor and about
    100 kB as run lengths. Detectron2 accepts this class as the field `pred_masks` of `Instances`. `numpy.asarray` and
    `tensor` decode all masks at once.

    Args:
        counts: Compressed run lengths of each mask.
        size: Height and width of the image in pixels.
    """

    def __init__(self, counts: Sequence[bytes], size: tuple[int, int]) -> None:
        self.counts = list(counts)
        self.size = size

    @classmethod
    def encode(cls, masks: Tensor) -> RunLengthMasks:
        """Encode masks.

        Args:
            masks: Masks `N×H×W` on any device, bool or with values 0 and 1.
        """
        height, width = (int(side) for side in masks.shape[1:])
        found = masks.detach()
        found = found.view(torch.uint8) if found.dtype == torch.bool else found.to(torch.uint8)
        if found.device.type != "cpu":
            # Runs go down the columns. A GPU transposes the masks faster than the CPU.
            found = found.transpose(1, 2).contiguous().cpu().transpose(1, 2)
        return cls([rle["counts"] for rle in encode(found.numpy())], (height, width))

    @classmethod
    def cat(cls, parts: Sequence[RunLengthMasks]) -> RunLengthMasks:
        """Concatenate masks.

        Args:
            parts: One or more sequences of masks with the same image size.
        """
        assert len({part.size for part in parts}) == 1, [part.size for part in parts]
        return cls([counts for part in parts for counts in part.counts], parts[0].size)

    def rles(self) -> list[dict[str, Any]]:
        """Return the masks as COCO run-length dicts."""
        return [{"size": list(self.size), "counts": counts} for counts in self.counts]

    def to(self, *args: Any, **kwargs: Any) -> RunLengthMasks:
        """Return the masks themselves. Run lengths are always on the CPU.

        Args:
            args: Arguments of `torch.Tensor.to`; not used.
            kwargs: Keyword arguments of `torch.Tensor.to`; not used.
        """
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape `(N, H, W)` of all masks."""
        return (len(self), *self.size)

    @property
    def tensor(self) -> Tensor:
        """All masks as a bool tensor `N×H×W` on the CPU."""
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
        """Decode one mask, or select several without decoding them.

        Args:
            item: Index of a mask, an int or a tensor without dimensions; or a slice, a list of indices, or a bool or
                integer tensor.

        Returns:
            A bool tensor `H×W` on the CPU for an index, otherwise the selected masks.
        """
        if isinstance(item, int) or (isinstance(item, Tensor) and item.dim() == 0):
            (rle,) = RunLengthMasks([self.counts[int(item)]], self.size).rles()
            return torch.from_numpy(decode(rle)).bool()
        selected = torch.arange(len(self))[item.cpu() if isinstance(item, Tensor) else item]
        return RunLengthMasks([self.counts[index] for index in selected.tolist()], self.size)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self.tensor.numpy().astype(dtype or bool)

    def __repr__(self) -> str:
        return f"RunLengthMasks({len(self)} masks of {self.size[0]}x{self.size[1]})"
