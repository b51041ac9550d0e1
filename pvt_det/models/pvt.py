"""Pyramid Vision Transformer (PVT v1), https://arxiv.org/abs/2102.12122.

Parameter names, shapes, initial values and LayerNorm epsilons match the code published with the paper (Apache-2.0), so
its weights load without renaming. The implementation is independent of that code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvt_det.layers.attention import SpatialReductionAttention
from pvt_det.layers.block import Block
from pvt_det.layers.cpu.position import PositionCache
from pvt_det.layers.mlp import Mlp
from pvt_det.layers.patch import PatchEmbed, Size
from pvt_det.models.trunk import Trunk, drop_path_rates
from pvt_det.models.variants import STRIDES, Variant

PATCH_SIZES = (4, 2, 2, 2)


class PyramidVisionTransformer(Trunk):
    """PVT v1: a classifier, or a trunk for dense prediction if `num_classes` is 0.

    The trunk has no class token, final norm or head. Its `pos_embed4` keeps the position of the class token, although
    it is not used, so that published tensors load unchanged.

    Args:
        variant: A variant of `variants.py` with family "v1".
        num_classes: Number of classes, or 0 for no classifier.
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1).
        img_size: Image height and width in pixels for which the position embeddings are created, each at least 32.
    """

    # Created in a loop below. Declared here for type checkers.
    pos_embed4: nn.Parameter

    def __init__(self, variant: Variant, num_classes: int, drop_path_rate: float, img_size: Size) -> None:
        super().__init__(variant.embed_dims, num_classes)
        self.grids = tuple((img_size[0] // stride, img_size[1] // stride) for stride in STRIDES)
        self._positions = tuple(PositionCache() for _ in STRIDES)
        channels = (3, *variant.embed_dims)
        rates = drop_path_rates(drop_path_rate, variant.depths)
        for s in range(4):
            dim, (rows, columns) = variant.embed_dims[s], self.grids[s]
            slots = rows * columns + (1 if s == 3 else 0)
            setattr(self, f"patch_embed{s + 1}", PatchEmbed(channels[s], dim, PATCH_SIZES[s]))
            setattr(self, f"pos_embed{s + 1}", nn.Parameter(torch.zeros(1, slots, dim)))
            blocks = [
                Block(
                    dim,
                    SpatialReductionAttention(dim, variant.num_heads[s], variant.sr_ratios[s]),
                    Mlp(dim, variant.mlp_ratios[s]),
                    rate,
                )
                for rate in rates[s]
            ]
            setattr(self, f"block{s + 1}", nn.ModuleList(blocks))
        if num_classes > 0:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, variant.embed_dims[3]))
            self.norm = nn.LayerNorm(variant.embed_dims[3], eps=1e-6)
            self.head = nn.Linear(variant.embed_dims[3], num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize parameters as the published code does. Convolutions keep PyTorch's default."""
        for name, parameter in self.named_parameters(recurse=False):
            assert name == "cls_token" or name.startswith("pos_embed")
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def stage_modules(self, i: int) -> list[nn.Module | nn.Parameter]:
        """Return the modules and parameters of one stage, for example to freeze them.

        Args:
            i: Stage number, 1 to 4.
        """
        return [*super().stage_modules(i), getattr(self, f"pos_embed{i}")]

    def embed(self, i: int, x: Tensor) -> tuple[Tensor, Size]:
        """Embed the input of a stage as tokens, with position embeddings but without the class token.

        Args:
            i: Stage number, 1 to 4.
            x: Images `N×3×H×W` for stage 1, otherwise the feature map `N×C×H×W` of the previous stage.

        Returns:
            Tokens `N×L×C`, and the height and width of their grid.
        """
        tokens, size = getattr(self, f"patch_embed{i}")(x)
        table = getattr(self, f"pos_embed{i}")
        if i == 4:
            table = table[:, 1:]
        return tokens + self._positions[i - 1].get(table, self.grids[i - 1], size), size

    def classify(self, x: Tensor) -> Tensor:
        """Compute logits from the class token, which is added in stage 4.

        Args:
            x: Images `N×3×H×W`, at least 32 pixels on each side.

        Returns:
            Logits `N×num_classes`.
        """
        for i in range(1, 4):
            x = self.forward_stage(i, x)
        tokens, size = self.embed(4, x)
        class_token = self.cls_token + self.pos_embed4[:, :1]
        tokens = torch.cat([class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.head(self.norm(self.run_blocks(4, tokens, size))[:, 0])
