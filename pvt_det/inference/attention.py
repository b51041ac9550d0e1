"""Attention maps: which tokens each token of a PVT looks at (PVT v1 section 3.3, equation 3).

The layers run PyTorch's fused attention, which never has the weights in memory. Here they are computed beside it, from
the queries and keys that pass, for one block only.
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
_INCHES = 3.0  # width of each picture
_DOTS = 120  # to the inch


@dataclass(frozen=True)
class Attention:
    """Attention weights of one block on one image.

    Attributes:
        weights: `heads×(H·W)×(h·w)`, or `heads×1×(h·w)` of the class token alone; over the keys they add up to 1, less
            what goes to the class token.
        queries: `(H, W)`, the stage's map; None where the class token asks.
        keys: `(h, w)`, the same map after spatial reduction.
    """

    weights: Tensor
    queries: Size | None
    keys: Size

    def maps(self, at: tuple[float, float] | None = None) -> Tensor:
        """Maps of the keys, `heads×h×w`.

        Args:
            at: The query's place as shares of the width and the height, 0 … 1; None takes the mean over all queries.
        """
        if at is None or self.queries is None:
            rows = self.weights.mean(dim=1)
        else:
            height, width = self.queries
            x, y = min(int(at[0] * width), width - 1), min(int(at[1] * height), height - 1)
            rows = self.weights[:, y * width + x]
        return rows.unflatten(-1, self.keys)


@dataclass
class _Seen:
    """What a block's layers passed on while the model ran."""

    size: Size = (0, 0)
    queries: list[Tensor] = field(default_factory=list)
    key_values: list[Tensor] = field(default_factory=list)


def attention_of(trunk: Trunk, image: Tensor, *, stage: int, block: int, class_token: bool = False) -> Attention:
    """Run a trunk or classifier on an image and return the attention weights of one block.

    Args:
        trunk: In evaluation mode; may be a detector's backbone. It is left as it was.
        image: `3×H×W`, normalised.
        stage: 1 … 4.
        block: Number of the stage's block from 0, or from -1 backwards.
        class_token: Whether the class token's query is wanted, which PVT v1's classifier has in stage 4, instead of
            those of the map.

    Raises:
        ConfigError: There is no such stage, block or class token.
    """
    blocks = _blocks(trunk, stage)
    if not -len(blocks) <= block < len(blocks):
        raise ConfigError(f"block {block}: stage {stage} has the blocks 0 to {len(blocks) - 1}, or -1 for the last.")
    has_token = stage == 4 and hasattr(trunk, "cls_token")
    if class_token and not has_token:
        raise ConfigError("the class token is in stage 4 of a PVT v1 classifier only: ask for a place in the image.")
    layer: Any = blocks[block].attn
    seen = _run(trunk, stage, blocks[block], image)
    q, k = torch.cat(seen.queries, dim=1)[0], seen.key_values[0][0].chunk(2, dim=-1)[0]
    q, k = (x.unflatten(-1, (layer.num_heads, -1)).transpose(0, 1) for x in (q, k))
    if has_token:
        q = q[:, :1] if class_token else q[:, 1:]
    weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(dim=-1)
    if has_token:
        weights = weights[:, :, 1:]
    return Attention(weights, None if class_token else seen.size, _key_grid(layer, seen.size))


def _blocks(trunk: Trunk, stage: int) -> nn.ModuleList:
    if stage not in (1, 2, 3, 4):
        raise ConfigError(f"stage {stage}: expected 1 to 4.")
    return getattr(trunk, f"block{stage}")


def _run(trunk: Trunk, stage: int, block: nn.Module, image: Tensor) -> _Seen:
    seen = _Seen()

    def keep_size(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.size = inputs[1]

    def keep_query(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.queries.append(output)

    def keep_key_value(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.key_values.append(output)

    layer: Any = block.attn
    hooks = [
        block.register_forward_pre_hook(keep_size),
        layer.q.register_forward_hook(keep_query),
        layer.kv.register_forward_hook(keep_key_value),
    ]
    try:
        with torch.no_grad():
            x = pad_image(image[None])
            if stage == 4 and trunk.num_classes:
                # The class token joins in the classifier alone.
                trunk.classify(x)
            else:
                for i in range(1, stage + 1):
                    x = trunk.forward_stage(i, x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _key_grid(layer: SpatialReductionAttention, size: Size) -> Size:
    if isinstance(layer, LinearSpatialReductionAttention):
        return POOL_SIDE, POOL_SIDE
    return size[0] // layer.sr_ratio, size[1] // layer.sr_ratio


def draw_attention(
    image: NDArray[np.uint8], maps: Tensor, heads: Sequence[int], path: Path, *, at: tuple[float, float] | None = None
) -> None:
    """Save a sheet: the image, with a cross where the query is, and one heat map over it for each head.

    Each map's colours go from its least to its greatest weight, which stands above it as a multiple of attention
    spread evenly.

    Args:
        image: `H×W×3` uint8 RGB.
        maps: `heads×h×w`.
        heads: The heads' numbers, for the captions.
        path: PNG file; its folder is made.
        at: The query's place, see `Attention.maps`.
    """
    height, width = image.shape[:2]
    columns = min(_COLUMNS, len(heads) + 1)
    rows = -(-(len(heads) + 1) // columns)
    figure = Figure(figsize=(columns * _INCHES, rows * (_INCHES * height / width + 0.3)), dpi=_DOTS, layout="tight")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    whole = (0, width, height, 0)
    first, *others = axes
    first.imshow(image, extent=whole)
    first.set_title("image" if at is None else "query", fontsize=9)
    if at is not None:
        first.plot(at[0] * width, at[1] * height, "+", color="white", markersize=12, markeredgewidth=3)
        first.plot(at[0] * width, at[1] * height, "+", color="red", markersize=11, markeredgewidth=1.5)
    for axis, head, weights in zip(others, heads, maps, strict=False):
        axis.imshow(image, extent=whole)
        axis.imshow(weights.numpy(), extent=whole, cmap=mpl.colormaps["inferno"], alpha=0.6, interpolation="bilinear")
        axis.set_title(f"head {head}: up to {float(weights.max()) * weights.numel():.1f} x even", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
