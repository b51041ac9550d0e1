"""The transformer block in training."""

from __future__ import annotations

import torch

from pvt_det.layers.attention import SpatialReductionAttention
from pvt_det.layers.block import Block
from pvt_det.layers.mlp import Mlp


def test_drop_path_skips_branches_per_sample():
    block = Block(8, SpatialReductionAttention(8, 2, 2), Mlp(8, 4), drop_path=0.5).train()
    torch.nn.init.constant_(block.mlp.fc2.bias, 1.0)
    x = torch.zeros(200, 4, 8)
    with torch.no_grad():
        out = block(x, (2, 2))
    skipped = (out == 0).all(dim=(1, 2))
    # Both branches of a sample are skipped with probability 1/4.
    assert 25 <= int(skipped.sum()) <= 80
