"""Every published variant, one row each.

PVT v1: table 1 of https://arxiv.org/abs/2102.12122. PVT v2: table 1 of https://arxiv.org/abs/2106.13797. Where a
paper and its published code differ, the rows follow the code, since published weights do.
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


@dataclass(frozen=True)
class Variant:
    """The numbers that tell one variant from another; four-tuples go from stage 1 to stage 4."""

    name: str
    family: Literal["v1", "v2"]
    depths: Four
    embed_dims: Four = _DIMS
    num_heads: Four = _HEADS
    mlp_ratios: Four = _MLP_RATIOS
    sr_ratios: Four = (8, 4, 2, 1)
    # PVT v2's linear attention: keys and values from a map pooled to 7×7 in place of one shrunk by `sr_ratios`.
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


def get_variant(name: str) -> Variant:
    """Return the variant of a name, such as "pvt_small".

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in VARIANTS:
        hint = did_you_mean(str(name), VARIANTS)
        raise ConfigError(f"unknown model {name!r}.{hint} Known are {', '.join(VARIANTS)}.")
    return VARIANTS[name]
