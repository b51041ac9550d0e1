"""Fast CPU inference of a transformer block, in chunks of samples or of rows of the map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pvt_det.layers.cpu.chunked import chunk_length
from pvt_det.layers.cpu.mlp import fast_mlp, has_no_hooks, use_fast_mlp
from pvt_det.layers.cpu.switch import use_fast_cpu
from pvt_det.layers.mlp import Mlp
from pvt_det.layers.patch import Size

if TYPE_CHECKING:
    from pvt_det.layers.block import Block


def use_fast_block(block: Block, x: Tensor) -> bool:
    """Return whether to use `fast_block`: in inference on a CPU, with more tokens than fit into the cache.

    Args:
        block: The block to run.
        x: Tokens `N×L×C`.
    """
    if block.training or torch.is_grad_enabled() or not use_fast_cpu(x):
        return False
    return x.shape[0] * x.shape[1] > _chunk_length(block, x)


def fast_block(block: Block, x: Tensor, size: Size) -> Tensor:
    """Compute `block(x, size)` in chunks.

    Args:
        block: The block to run, in evaluation mode.
        x: Tokens `N×L×C`.
        size: Height and width of the map in tokens.

    Returns:
        Tokens `N×L×C`.
    """
    length = _chunk_length(block, x)
    samples = length // x.shape[1]
    # A class token does not belong to a row of the map, so samples with one are not split into rows.
    if samples == 0 and x.shape[1] == size[0] * size[1]:
        rows = max(1, length // size[1])
        return torch.cat([_run_by_rows(block, sample, size, rows) for sample in x.split(1)])
    return torch.cat([_run(block, chunk, size) for chunk in x.split(max(1, samples))])


def _chunk_length(block: Block, x: Tensor) -> int:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return chunk_length(block.mlp.fc1.out_features, dtype.itemsize)


def _run(block: Block, x: Tensor, size: Size) -> Tensor:
    x = x + block.attn(block.norm1(x), size)
    return x + block.mlp(block.norm2(x), size)


def _run_by_rows(block: Block, x: Tensor, size: Size, rows: int) -> Tensor:
    # Attention has chunks of its own.
    return _mlp_by_rows(block, x + block.attn(block.norm1(x), size), size, rows)


def _mlp_by_rows(block: Block, x: Tensor, size: Size, rows: int) -> Tensor:
    """Compute the MLP branch and its residual, with a halo of rows for the convolution around each chunk."""
    height, width = size
    halo = block.mlp.halo
    out = torch.empty_like(x)
    if isinstance(block.mlp, Mlp) and has_no_hooks(block.mlp) and use_fast_mlp(block.mlp, x):
        length = rows * width
        for x_chunk, out_chunk in zip(x.split(length, dim=1), out.split(length, dim=1), strict=True):
            out_chunk.copy_(fast_mlp(block.mlp, block.norm2(x_chunk), x_chunk))
        return out
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, top - halo), min(height, bottom + halo)
        y = block.mlp(block.norm2(x[:, first * width : last * width]), (last - first, width))
        y = y[:, (top - first) * width : (bottom - first) * width]
        chunk = slice(top * width, bottom * width)
        torch.add(y, x[:, chunk], out=out[:, chunk])
    return out
