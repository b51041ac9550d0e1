"""What PVT v1 and v2 have in common: four stages, from an image to a pyramid of maps."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pvt_det.errors import ConfigError
from pvt_det.layers.patch import Size, to_map

STRIDES = (4, 8, 16, 32)
# Below this the spatial reduction of some stage would be left without a single key.
MIN_SIDE = 32


class Trunk(nn.Module, ABC):
    """Four stages `patch_embed{i}` and `block{i}`, i = 1 … 4, with the published names.

    Attributes:
        embed_dims: Channels of the four maps.
        num_classes: Outputs of the classifier; 0 where there is none.
        checkpoint_stages: Stages (of 1 … 4) whose blocks are computed again in the backward pass instead of keeping
            their activations. Outputs and gradients stay the same. Only read in training mode.
    """

    def __init__(self, embed_dims: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.num_classes = num_classes
        self.checkpoint_stages: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `N×3×H×W`, normalised; returns logits `N×num_classes`.

        Raises:
            ConfigError: If the model was built with `num_classes=0`, or `x` is no batch of three-channel images.
        """
        if self.num_classes == 0:
            raise ConfigError("this model has no classifier (num_classes=0): call forward_pyramid, or give num_classes")
        return self.classify(pad_image(x))

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Compute the four maps of images `N×3×H×W`, without the class token.

        Args:
            x: Normalised images of any size. Sides below 32 pixels are first padded to 32 with zeros at the bottom and
                on the right, so that every stage has at least one token.

        Returns:
            Maps `N×C_i×H_i×W_i` of strides 4, 8, 16, 32, in channels-last memory. From an image side S, PVT v1 makes
            `S // 4` and halves it, rounding down; PVT v2 rounds up.

        Raises:
            ConfigError: If `x` is no batch of three-channel images.
        """
        x = pad_image(x)
        maps = []
        for i in range(1, 5):
            x = self.forward_stage(i, x)
            maps.append(x)
        return maps

    def forward_stage(self, i: int, x: Tensor) -> Tensor:
        """Run stage `i` of 1 … 4 alone, from the image or the previous stage's map to its own map, both `N×C×H×W`."""
        tokens, size = self.embed(i, x)
        return to_map(self.run_blocks(i, tokens, size), size)

    def stage_modules(self, i: int) -> list[nn.Module | nn.Parameter]:
        """Everything that belongs to stage `i` of 1 … 4, to freeze it for example."""
        return [getattr(self, f"patch_embed{i}"), getattr(self, f"block{i}")]

    def run_blocks(self, i: int, tokens: Tensor, size: Size) -> Tensor:
        """Run the blocks of stage `i`, and what follows them, on tokens `N×L×C`."""
        again = i in self.checkpoint_stages and self.training and torch.is_grad_enabled()
        for block in getattr(self, f"block{i}"):
            tokens = checkpoint(block, tokens, size, use_reentrant=False) if again else block(tokens, size)
        return tokens

    @abstractmethod
    def embed(self, i: int, x: Tensor) -> tuple[Tensor, Size]:
        """Turn the input of stage `i` into its tokens and the size of their grid."""

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """Compute logits of images that are large enough."""


def pad_image(x: Tensor) -> Tensor:
    """Pad images `N×3×H×W` with zeros to at least 32 pixels a side.

    Raises:
        ConfigError: If `x` has another number of dimensions or channels, or no pixels.
    """
    if x.dim() != 4 or x.shape[1] != 3:
        raise ConfigError(f"input of shape {tuple(x.shape)}: expected a batch of RGB images, N x 3 x H x W")
    height, width = x.shape[-2:]
    if height >= MIN_SIDE and width >= MIN_SIDE:
        return x
    if height == 0 or width == 0:
        raise ConfigError(f"input of shape {tuple(x.shape)}: the images have no pixels")
    return F.pad(x, (0, max(0, MIN_SIDE - width), 0, max(0, MIN_SIDE - height)))


def check_drop_path_rate(rate: float, name: str = "drop_path_rate") -> None:
    """Check that a rate of stochastic depth is in [0, 1).

    Args:
        rate: The rate.
        name: What messages call it.

    Raises:
        ConfigError: It is not.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"{name} = {rate!r}: expected 0 or more and less than 1.")


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Return the stochastic depth of every block, rising linearly from 0 to `rate`, as one list for each stage.

    Args:
        rate: Stochastic depth of the last block, in [0, 1).
        depths: Number of blocks of each stage.

    Raises:
        ConfigError: The rate is out of its range.
    """
    check_drop_path_rate(rate)
    total = sum(depths)
    rates = iter(rate * n / max(1, total - 1) for n in range(total))
    return [[next(rates) for _ in range(depth)] for depth in depths]
