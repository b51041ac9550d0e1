"""The transformer block that both families share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pvt_det.layers.attention import SpatialReductionAttention
from pvt_det.layers.cpu.chunked import band_length
from pvt_det.layers.cpu.onednn import runs_on_cpu
from pvt_det.layers.mlp import ConvMlp, Mlp
from pvt_det.layers.patch import Size


class Block(nn.Module):
    """Pre-norm block: attention, then feed-forward, each with a residual connection and stochastic depth.

    Args:
        dim: Channels of the tokens.
        attention: Spatial-reduction attention of `dim` channels.
        mlp: Feed-forward layers of `dim` channels.
        drop_path: Probability of skipping each of the two branches for a sample, in [0, 1).
    """

    def __init__(self, dim: int, attention: SpatialReductionAttention, mlp: Mlp | ConvMlp, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Transform tokens `N×L×C` of a map of `size` `(H, W)`."""
        samples = self._samples_at_once(x)
        if samples >= x.shape[0]:
            return self._whole(x, size)
        # A class token is of no row of the map, so that there are no bands of rows.
        run = self._in_bands if samples == 0 and x.shape[1] == size[0] * size[1] else self._whole
        return torch.cat([run(part, size) for part in x.split(max(1, samples))])

    def _samples_at_once(self, x: Tensor) -> int:
        """How many samples stay in a CPU's cache together in inference; 0 where not even one does."""
        if self.training or torch.is_grad_enabled() or not runs_on_cpu(x):
            return x.shape[0]
        return self._band_length(x) // x.shape[1]

    def _band_length(self, x: Tensor) -> int:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return band_length(self.mlp.fc1.out_features, dtype.itemsize)

    def _whole(self, x: Tensor, size: Size) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x), size))

    def _in_bands(self, x: Tensor, size: Size) -> Tensor:
        """Compute the same for one sample, a band of the map's rows at a time.

        Only keys and values need all tokens at once.
        """
        height, width = size
        rows = max(1, self._band_length(x) // width)
        normed = self.norm1(x)
        key_value = self.attn.key_value(normed, size)
        attended, out = torch.empty_like(x), torch.empty_like(x)
        for top in range(0, height, rows):
            band = slice(top * width, (top + rows) * width)
            torch.add(self.attn.query(normed[:, band], key_value), x[:, band], out=attended[:, band])
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            above, below = max(0, top - self.mlp.reach), min(height, bottom + self.mlp.reach)
            y = self.mlp(self.norm2(attended[:, above * width : below * width]), (below - above, width))
            y = y[:, (top - above) * width : (bottom - above) * width]
            band = slice(top * width, bottom * width)
            torch.add(y, attended[:, band], out=out[:, band])
        return out
