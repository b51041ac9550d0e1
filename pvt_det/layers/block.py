"""The transformer block of PVT v1 and v2."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pvt_det.layers.attention import SpatialReductionAttention
from pvt_det.layers.cpu.block import fast_block, use_fast_block
from pvt_det.layers.mlp import ConvMlp, Mlp
from pvt_det.layers.patch import Size


class Block(nn.Module):
    """Pre-norm block: attention, then MLP, each with a residual connection and stochastic depth.

    Args:
        dim: Channels of the tokens.
        attention: Spatial-reduction attention with `dim` channels.
        mlp: MLP with `dim` input and output channels.
        drop_path: Probability of dropping each of the two branches for a sample, in [0, 1).
    """

    def __init__(self, dim: int, attention: SpatialReductionAttention, mlp: Mlp | ConvMlp, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Apply attention and the MLP.

        Args:
            x: Tokens `N×L×C`.
            size: Height and width of the map in tokens.

        Returns:
            Tokens `N×L×C`.
        """
        if use_fast_block(self, x):
            return fast_block(self, x, size)
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        x = x + self.drop_path(self.mlp(self.norm2(x), size))
        return x
