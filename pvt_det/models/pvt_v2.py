"""Pyramid Vision Transformer v2 (PVT v2), https://arxiv.org/abs/2106.13797.

Parameter names, shapes, initial values and LayerNorm epsilons match the code published with the paper (Apache-2.0), so
its weights load without renaming. The implementation is independent of that code.
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
    """PVT v2: a classifier, or a trunk for dense prediction if `num_classes` is 0.

    The trunk is the classifier without the head. Each stage ends with a LayerNorm, `norm1` … `norm4`, so the feature
    maps of `forward_pyramid` are normalized.

    Args:
        variant: A variant of `variants.py` with family "v2".
        num_classes: Number of classes, or 0 for no classifier.
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1).
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
        """Initialize parameters as the published code does."""
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
        """Return the modules of one stage, for example to freeze them.

        Args:
            i: Stage number, 1 to 4.
        """
        return [*super().stage_modules(i), getattr(self, f"norm{i}")]

    def embed(self, i: int, x: Tensor) -> tuple[Tensor, Size]:
        """Embed the input of a stage as tokens.

        Args:
            i: Stage number, 1 to 4.
            x: Images `N×3×H×W` for stage 1, otherwise the feature map `N×C×H×W` of the previous stage.

        Returns:
            Tokens `N×L×C`, and the height and width of their grid.
        """
        return getattr(self, f"patch_embed{i}")(x)

    def run_blocks(self, i: int, tokens: Tensor, size: Size) -> Tensor:
        """Run the blocks of a stage and the LayerNorm that follows them.

        Args:
            i: Stage number, 1 to 4.
            tokens: Tokens `N×(H·W)×C`.
            size: Height and width of the grid of tokens.

        Returns:
            Tokens `N×(H·W)×C`.
        """
        return getattr(self, f"norm{i}")(super().run_blocks(i, tokens, size))

    def classify(self, x: Tensor) -> Tensor:
        """Compute logits from the mean of the last feature map.

        Args:
            x: Images `N×3×H×W`, at least 32 pixels on each side.

        Returns:
            Logits `N×num_classes`.
        """
        for i in range(1, 5):
            x = self.forward_stage(i, x)
        return self.head(x.mean(dim=(2, 3)))
