"""The transformer block that both families share."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pvt_det.layers.patch import Size


class Block(nn.Module):
    """Pre-norm block: attention, then feed-forward, each with a residual connection and stochastic depth.

    Args:
        dim: Channels of the tokens.
        attention: Called with `(tokens, size)`.
        mlp: Called with `(tokens, size)`.
        drop_path: Probability of skipping each of the two branches for a sample, in [0, 1).
    """

    def __init__(self, dim: int, attention: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Transform tokens `N×L×C` of a map of `size` `(H, W)`."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x), size))
