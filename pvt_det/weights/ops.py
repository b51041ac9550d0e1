"""The few ways in which a layout change touches the numbers of a tensor, by name; `dialects.py` refers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# RetinaNet has three aspect ratios and three sizes at every place, in the papers and in both code bases.
_RATIOS, _SIZES = 3, 3


def _same(parts: Sequence[Tensor]) -> list[Tensor]:
    return list(parts)


def _concat(parts: Sequence[Tensor]) -> list[Tensor]:
    """Stack along the output channels: key and value become `kv`."""
    return [torch.cat(list(parts))]


def _split_q_kv(parts: Sequence[Tensor]) -> list[Tensor]:
    """Take `nn.MultiheadAttention`'s fused projection `3C×…` apart into query `C×…` and key-and-value `2C×…`."""
    channels = parts[0].shape[0] // 3
    return [parts[0][:channels], parts[0][channels:]]


def _conv_to_linear(parts: Sequence[Tensor]) -> list[Tensor]:
    """Drop the two spatial axes of a 1×1 convolution's weight; a bias stays as it is."""
    return [part.flatten(1) if part.dim() == 4 and part.shape[2:] == (1, 1) else part for part in parts]


def _ratio_major_to_size_major(parts: Sequence[Tensor]) -> list[Tensor]:
    """Reorder output channels from (ratio, size, …) as MMDetection has them to (size, ratio, …) of Detectron2."""
    return [part.unflatten(0, (_RATIOS, _SIZES, -1)).transpose(0, 1).flatten(0, 2) for part in parts]


# The parts come in the order of a rule's sources, the results in the order of its targets.
OPS: dict[str, Callable[[Sequence[Tensor]], list[Tensor]]] = {
    "same": _same,
    "concat": _concat,
    "split_q_kv": _split_q_kv,
    "conv_to_linear": _conv_to_linear,
    "ratio_major_to_size_major": _ratio_major_to_size_major,
}
