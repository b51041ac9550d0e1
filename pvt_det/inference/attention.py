"""Compute and draw attention maps: which tokens each token of a PVT attends to (PVT v1 section 3.3, equation 3).

The layers use PyTorch's fused attention, which does not return the attention weights. This module recomputes them for
one block, from the queries and keys that hooks record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.layers.attention import POOL_SIDE, LinearSpatialReductionAttention, SpatialReductionAttention
from pvt_det.layers.patch import Size
from pvt_det.models.trunk import Trunk, pad_image

_COLUMNS = 4
_INCHES = 3.0  # width of each panel
_DPI = 120


@dataclass(frozen=True)
class Attention:
    """Attention weights of one block on one image.

    Attributes:
        weights: Attention weights, `heads×(H·W)×(h·w)`, or `heads×1×(h·w)` if the query is the class token. They sum
            to 1 over the keys, or to less if the class token is a key, because its weight is removed.
        queries: Size `(H, W)` of the stage's feature map, or None if the query is the class token.
        keys: Size `(h, w)` of the same feature map after spatial reduction.
    """

    weights: Tensor
    queries: Size | None
    keys: Size

    def maps(self, at: tuple[float, float] | None = None) -> Tensor:
        """Return one attention map over the keys for each head, `heads×h×w`.

        Args:
            at: Position (x, y) of the query as fractions of the width and height, 0 to 1. None averages over all
                queries.
        """
        if at is None or self.queries is None:
            rows = self.weights.mean(dim=1)
        else:
            height, width = self.queries
            x, y = min(int(at[0] * width), width - 1), min(int(at[1] * height), height - 1)
            rows = self.weights[:, y * width + x]
        return rows.unflatten(-1, self.keys)


@dataclass
class _Recorded:
    """Size, queries, keys and values of a block, recorded during a forward pass."""

    size: Size = (0, 0)
    queries: list[Tensor] = field(default_factory=list)
    key_values: list[Tensor] = field(default_factory=list)


def compute_attention(trunk: Trunk, image: Tensor, *, stage: int, block: int, class_token: bool = False) -> Attention:
    """Run a trunk or classifier on an image and return the attention weights of one block.

    Args:
        trunk: A trunk or classifier in evaluation mode, such as a detector's backbone. It is not modified.
        image: Normalized `3×H×W` image.
        stage: Stage of the trunk, 1 to 4.
        block: Index of the block in the stage, from 0. Negative indices count from the last block.
        class_token: Whether to use the query of the class token instead of the queries of the feature map. Only stage 4
            of a PVT v1 classifier has a class token.

    Raises:
        ConfigError: The stage, block or class token does not exist.
    """
    blocks = _blocks(trunk, stage)
    if not -len(blocks) <= block < len(blocks):
        raise ConfigError(
            f"Block {block} does not exist. Stage {stage} has blocks 0 to {len(blocks) - 1}, or -1 for the last."
        )
    has_token = stage == 4 and hasattr(trunk, "cls_token")
    if class_token and not has_token:
        raise ConfigError(
            "The class token exists in stage 4 of a PVT v1 classifier only. Query an image position instead."
        )
    layer: Any = blocks[block].attn
    recorded = _run(trunk, stage, blocks[block], image)
    q, k = torch.cat(recorded.queries, dim=1)[0], recorded.key_values[0][0].chunk(2, dim=-1)[0]
    q, k = (x.unflatten(-1, (layer.num_heads, -1)).transpose(0, 1) for x in (q, k))
    if has_token:
        q = q[:, :1] if class_token else q[:, 1:]
    weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(dim=-1)
    if has_token:
        weights = weights[:, :, 1:]
    return Attention(weights, None if class_token else recorded.size, _key_grid(layer, recorded.size))


def _blocks(trunk: Trunk, stage: int) -> nn.ModuleList:
    if stage not in (1, 2, 3, 4):
        raise ConfigError(f"Stage {stage} does not exist. Expected 1 to 4.")
    return getattr(trunk, f"block{stage}")


def _run(trunk: Trunk, stage: int, block: nn.Module, image: Tensor) -> _Recorded:
    recorded = _Recorded()

    def record_size(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        recorded.size = inputs[1]

    def record_query(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        recorded.queries.append(output)

    def record_key_value(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        recorded.key_values.append(output)

    layer: Any = block.attn
    hooks = [
        block.register_forward_pre_hook(record_size),
        layer.q.register_forward_hook(record_query),
        layer.kv.register_forward_hook(record_key_value),
    ]
    try:
        with torch.no_grad():
            x = pad_image(image[None])
            if stage == 4 and trunk.num_classes:
                # Only `classify` adds the class token.
                trunk.classify(x)
            else:
                for i in range(1, stage + 1):
                    x = trunk.forward_stage(i, x)
    finally:
        for hook in hooks:
            hook.remove()
    return recorded


def _key_grid(layer: SpatialReductionAttention, size: Size) -> Size:
    if isinstance(layer, LinearSpatialReductionAttention):
        return POOL_SIDE, POOL_SIDE
    return size[0] // layer.sr_ratio, size[1] // layer.sr_ratio


def draw_attention(
    image: NDArray[np.uint8], maps: Tensor, heads: Sequence[int], path: Path, *, at: tuple[float, float] | None = None
) -> None:
    """Save a figure with the image, a cross at the query, and one heat map per head drawn over the image.

    The colors of each heat map range from its minimum to its maximum weight. The title gives the maximum as a multiple
    of uniform attention.

    Args:
        image: `H×W×3` uint8 RGB image.
        maps: Attention maps, `heads×h×w`.
        heads: Indices of the heads, for the titles.
        path: PNG file to write. Its folder is created if it does not exist.
        at: Position (x, y) of the query as fractions of the width and height, 0 to 1. None draws no cross.
    """
    height, width = image.shape[:2]
    columns = min(_COLUMNS, len(heads) + 1)
    rows = -(-(len(heads) + 1) // columns)
    figure = Figure(figsize=(columns * _INCHES, rows * (_INCHES * height / width + 0.3)), dpi=_DPI, layout="tight")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    extent = (0, width, height, 0)
    first, *others = axes
    first.imshow(image, extent=extent)
    first.set_title("image" if at is None else "query", fontsize=9)
    if at is not None:
        first.plot(at[0] * width, at[1] * height, "+", color="white", markersize=12, markeredgewidth=3)
        first.plot(at[0] * width, at[1] * height, "+", color="red", markersize=11, markeredgewidth=1.5)
    for axis, head, weights in zip(others, heads, maps, strict=False):
        axis.imshow(image, extent=extent)
        axis.imshow(weights.numpy(), extent=extent, cmap=mpl.colormaps["inferno"], alpha=0.6, interpolation="bilinear")
        axis.set_title(f"head {head}: up to {float(weights.max()) * weights.numel():.1f} x uniform", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
