"""Pyramid Vision Transformer v2 (PVT v2), https://arxiv.org/abs/2106.13797.

Parameter names, shapes, initial values and LayerNorm epsilons are those of the code published with the paper
(Apache-2.0), so its weights load without renaming. The implementation is this package's own.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from pvt_det.layers.attention import LinearSpatialReductionAttention, SpatialReductionAttention
from pvt_det.layers.block import Block
from pvt_det.layers.mlp import ConvMlp
from pvt_det.layers.patch import OverlapPatchEmbed, Size
from pvt_det.models.trunk import Trunk, drop_path_rates
from pvt_det.models.variants import Variant

KERNELS_AND_STRIDES = ((7, 4), (3, 2), (3, 2), (3, 2))


class PyramidVisionTransformerV2(Trunk):
    """PVT v2: classifier, or trunk for dense prediction (the same without the head) when `num_classes` is 0.

    Each stage ends with its LayerNorm, `norm1` … `norm4`; the maps of `forward_pyramid` are normalised.

    Args:
        variant: A row of `variants.py` with family "v2".
        num_classes: Outputs of the classifier, or 0.
        drop_path_rate: Stochastic depth of the last block, in [0, 1).
    """

    def __init__(self, variant: Variant, num_classes: int, drop_path_rate: float) -> None:
        super().__init__(variant.embed_dims, num_classes)
        channels = (3, *variant.embed_dims)
        rates = drop_path_rates(drop_path_rate, variant.depths)
        for s in range(4):
            dim, heads = variant.embed_dims[s], variant.num_heads[s]
            setattr(self, f"patch_embed{s + 1}", OverlapPatchEmbed(channels[s], dim, *KERNELS_AND_STRIDES[s]))
            blocks = [
                Block(
                    dim,
                    LinearSpatialReductionAttention(dim, heads)
                    if variant.linear
                    else SpatialReductionAttention(dim, heads, variant.sr_ratios[s]),
                    ConvMlp(dim, variant.mlp_ratios[s], relu=variant.linear),
                    rate,
                )
                for rate in rates[s]
            ]
            setattr(self, f"block{s + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{s + 1}", nn.LayerNorm(dim, eps=1e-6))
        if num_classes > 0:
            self.head = nn.Linear(variant.embed_dims[3], num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values of the published code."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def stage_modules(self, i: int) -> list[nn.Module | nn.Parameter]:
        """Everything that belongs to stage `i` of 1 … 4, to freeze it for example."""
        return [*super().stage_modules(i), getattr(self, f"norm{i}")]

    def embed(self, i: int, x: Tensor) -> tuple[Tensor, Size]:
        """Turn the input of stage `i` into its tokens and the size of their grid."""
        return getattr(self, f"patch_embed{i}")(x)

    def run_blocks(self, i: int, tokens: Tensor, size: Size) -> Tensor:
        """Run the blocks of stage `i`, and the LayerNorm that follows them, on tokens `N×L×C`."""
        return getattr(self, f"norm{i}")(super().run_blocks(i, tokens, size))

    def classify(self, x: Tensor) -> Tensor:
        """Compute logits `N×num_classes` from the mean of the last map."""
        for i in range(1, 5):
            x = self.forward_stage(i, x)
        return self.head(x.mean(dim=(2, 3)))
