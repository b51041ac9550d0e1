"""Hyperparameters of all published variants.

PVT v1 is described in table 1 of https://arxiv.org/abs/2102.12122, PVT v2 in table 1 of
https://arxiv.org/abs/2106.13797. Where a paper and its code differ, we follow the code, because the published weights
do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pvt_det.errors import ConfigError
from pvt_det.utils.text import did_you_mean

Four = tuple[int, int, int, int]

_DIMS: Four = (64, 128, 320, 512)
_HEADS: Four = (1, 2, 5, 8)
_MLP_RATIOS: Four = (8, 8, 4, 4)

# Names and strides of the four feature maps.
STAGES = ("stage1", "stage2", "stage3", "stage4")
STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Variant:
    """Hyperparameters of one variant. Each tuple has one value per stage, from stage 1 to stage 4.

    Attributes:
        name: Name of the variant, such as "pvt_small".
        family: "v1" or "v2".
        depths: Number of blocks.
        embed_dims: Channels of the tokens.
        num_heads: Number of attention heads.
        mlp_ratios: Hidden channels of the MLP as a multiple of `embed_dims`.
        sr_ratios: Factor by which spatial-reduction attention reduces each side of the map of keys and values. Not used
            if `linear` is true.
        linear: Whether to use PVT v2's linear attention, which pools the map of keys and values to 7×7.
    """

    name: str
    family: Literal["v1", "v2"]
    depths: Four
    embed_dims: Four = _DIMS
    num_heads: Four = _HEADS
    mlp_ratios: Four = _MLP_RATIOS
    sr_ratios: Four = (8, 4, 2, 1)
    linear: bool = False


_ROWS = (
    Variant("pvt_tiny", "v1", depths=(2, 2, 2, 2)),
    Variant("pvt_small", "v1", depths=(3, 4, 6, 3)),
    Variant("pvt_medium", "v1", depths=(3, 4, 18, 3)),
    Variant("pvt_large", "v1", depths=(3, 8, 27, 3)),
    Variant("pvt_v2_b0", "v2", depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256)),
    Variant("pvt_v2_b1", "v2", depths=(2, 2, 2, 2)),
    Variant("pvt_v2_b2", "v2", depths=(3, 4, 6, 3)),
    Variant("pvt_v2_b2_li", "v2", depths=(3, 4, 6, 3), linear=True),
    Variant("pvt_v2_b3", "v2", depths=(3, 4, 18, 3)),
    Variant("pvt_v2_b4", "v2", depths=(3, 8, 27, 3)),
    Variant("pvt_v2_b5", "v2", depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
)

VARIANTS = {row.name: row for row in _ROWS}


def list_models() -> list[str]:
    """Return the names that `create_model` accepts."""
    return list(VARIANTS)


def get_variant(name: str) -> Variant:
    """Look up a variant by name.

    Args:
        name: Name of the variant, such as "pvt_small".

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in VARIANTS:
        hint = did_you_mean(str(name), VARIANTS)
        raise ConfigError(f"unknown model {name!r}.{hint} Known models: {', '.join(VARIANTS)}.")
    return VARIANTS[name]
