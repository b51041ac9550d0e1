"""Feed-forward layers of the transformer blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvt_det.layers.cpu.chunked import BandedMlp, band_length
from pvt_det.layers.cpu.onednn import Linear, is_plain, product, runs_on_cpu
from pvt_det.layers.patch import Size, to_map, to_tokens


class Mlp(nn.Module):
    """Two linear layers with GELU between them (PVT v1).

    Args:
        dim: Channels of the tokens.
        ratio: Hidden channels as a multiple of `dim`.

    Attributes:
        reach: Rows of the map above and below that a token's output depends on.
    """

    reach = 0

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, dim * ratio)
        self.fc2 = Linear(dim * ratio, dim)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Transform `N×L×C` token by token; `size` is not needed here, and is in PVT v2."""
        dtype = self._bands_dtype(x)
        if dtype is not None:
            parameters = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            out = BandedMlp.apply(x.flatten(0, 1).to(dtype), *(p.to(dtype) for p in parameters))
            return out.unflatten(0, x.shape[:2])
        if runs_on_cpu(x) and not torch.is_grad_enabled() and is_plain(self.fc1):
            return self.fc2(product(x, self.fc1.weight, self.fc1.bias, gelu=True))
        return self.fc2(F.gelu(self.fc1(x)))

    def _bands_dtype(self, x: Tensor) -> torch.dtype | None:
        """The number format of training in bands; None where it does not pay, or cannot be."""
        if not (torch.is_grad_enabled() and runs_on_cpu(x) and is_plain(self.fc1) and is_plain(self.fc2)):
            return None
        if x.shape[0] * x.shape[1] <= band_length(self.fc1.out_features):
            return None
        if torch.is_autocast_enabled("cpu"):
            return torch.get_autocast_dtype("cpu") if x.dtype != torch.float64 else None
        return x.dtype if x.dtype == self.fc1.weight.dtype else None


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
        relu: Put a ReLU before the convolution, as the linear variant does.

    Attributes:
        reach: Rows of the map above and below that a token's output depends on.
    """

    reach = 1

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
        return self.fc2(F.gelu(self.dwconv(x, size)))
