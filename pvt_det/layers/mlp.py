"""The MLPs of the transformer blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.cpu.mlp import fast_mlp, use_fast_mlp
from pvt_det.layers.linear import Linear
from pvt_det.layers.patch import Size, to_map, to_tokens


class Mlp(nn.Module):
    """Two linear layers with GELU between them (PVT v1).

    Args:
        dim: Channels of the tokens.
        ratio: Hidden channels as a multiple of `dim`.

    Attributes:
        halo: Rows of the map above and below a token that its output depends on.
    """

    halo = 0

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, dim * ratio)
        self.fc2 = Linear(dim * ratio, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Transform tokens `N×L×C`; `size` is ignored, so that both MLPs are called alike."""
        if use_fast_mlp(self, x):
            return fast_mlp(self, x)
        x = self.fc1(x)
        x = F.gelu(x)
        return self.fc2(x)


class DepthwiseConv(nn.Module):
    """3×3 depth-wise convolution; a module of its own because the published keys say `dwconv.dwconv`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Convolve tokens `N×(H·W)×C` of a map of `size` `(H, W)`."""
        return to_tokens(self.dwconv(to_map(x, size)))


class ConvMlp(nn.Module):
    """Two linear layers with a 3×3 depth-wise convolution and GELU between them (PVT v2 section 3.1).

    Args:
        dim: Channels of the tokens.
        ratio: Hidden channels as a multiple of `dim`.
        relu: Whether a ReLU precedes the convolution, as in the linear variant.

    Attributes:
        halo: Rows of the map above and below a token that its output depends on.
    """

    halo = 1

    def __init__(self, dim: int, ratio: int, relu: bool) -> None:
        super().__init__()
        self.fc1 = Linear(dim, dim * ratio)
        self.relu = relu
        self.dwconv = DepthwiseConv(dim * ratio)
        self.fc2 = Linear(dim * ratio, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Transform tokens `N×(H·W)×C` of a map of `size` `(H, W)`."""
        x = self.fc1(x)
        if self.relu:
            x = F.relu(x)
        x = self.dwconv(x, size)
        x = F.gelu(x)
        return self.fc2(x)
