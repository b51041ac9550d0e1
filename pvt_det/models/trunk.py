"""Base class of PVT v1 and v2: four stages that turn an image into a pyramid of feature maps."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pvt_det.errors import ConfigError
from pvt_det.layers.patch import Size, to_map

# In smaller images, the spatial reduction of some stage would leave no keys.
MIN_SIDE = 32


class Trunk(nn.Module, ABC):
    """Base class with four stages. Stage `i` consists of `patch_embed{i}` and `block{i}`.

    Args:
        embed_dims: Channels of the four feature maps.
        num_classes: Number of classes, or 0 for no classifier.

    Attributes:
        embed_dims: Channels of the four feature maps.
        num_classes: Number of classes, or 0 for no classifier.
        checkpoint_stages: Stages, from 1 to 4, whose blocks are recomputed in the backward pass instead of keeping
            their activations. Outputs and gradients stay the same. Only used in training mode.
    """

    def __init__(self, embed_dims: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.num_classes = num_classes
        self.checkpoint_stages: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Normalized images `N×3×H×W` of any size. Sides below 32 pixels are padded to 32 with zeros.

        Returns:
            Logits `N×num_classes`.

        Raises:
            ConfigError: The model was built with `num_classes=0`, or `x` is not a batch of three-channel images.
        """
        if self.num_classes == 0:
            raise ConfigError("this model has no classifier (num_classes=0): call forward_pyramid, or set num_classes")
        return self.classify(pad_image(x))

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """Compute the four feature maps of a batch of images, without the class token.

        Args:
            x: Normalized images `N×3×H×W` of any size. Sides below 32 pixels are padded to 32 with zeros at the bottom
                and on the right, so that every stage has at least one token.

        Returns:
            Feature maps `N×C_i×H_i×W_i` with strides 4, 8, 16 and 32, in channels-last memory. Stage 1 divides each
            side by 4, and each later stage halves it. PVT v1 rounds down, PVT v2 rounds up.

        Raises:
            ConfigError: `x` is not a batch of three-channel images.
        """
        x = pad_image(x)
        maps = []
        for i in range(1, 5):
            x = self.forward_stage(i, x)
            maps.append(x)
        return maps

    def forward_stage(self, i: int, x: Tensor) -> Tensor:
        """Run a single stage.

        Args:
            i: Stage number, 1 to 4.
            x: Images `N×3×H×W` for stage 1, otherwise the feature map `N×C×H×W` of the previous stage.

        Returns:
            Feature map `N×C×H×W` of the stage.
        """
        tokens, size = self.embed(i, x)
        return to_map(self.run_blocks(i, tokens, size), size)

    def stage_modules(self, i: int) -> list[nn.Module | nn.Parameter]:
        """Return the modules of one stage, for example to freeze them.

        Args:
            i: Stage number, 1 to 4.
        """
        return [getattr(self, f"patch_embed{i}"), getattr(self, f"block{i}")]

    def run_blocks(self, i: int, tokens: Tensor, size: Size) -> Tensor:
        """Run the blocks of a stage.

        Args:
            i: Stage number, 1 to 4.
            tokens: Tokens `N×L×C`. `L` is H·W, plus 1 with a class token.
            size: Height and width of the grid of tokens.

        Returns:
            Tokens `N×L×C`.
        """
        recompute = i in self.checkpoint_stages and self.training and torch.is_grad_enabled()
        for block in getattr(self, f"block{i}"):
            tokens = checkpoint(block, tokens, size, use_reentrant=False) if recompute else block(tokens, size)
        return tokens

    @abstractmethod
    def embed(self, i: int, x: Tensor) -> tuple[Tensor, Size]:
        """Embed the input of a stage as tokens.

        Args:
            i: Stage number, 1 to 4.
            x: Images `N×3×H×W` for stage 1, otherwise the feature map `N×C×H×W` of the previous stage.

        Returns:
            Tokens `N×L×C`, and the height and width of their grid.
        """

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """Compute logits.

        Args:
            x: Images `N×3×H×W`, at least 32 pixels on each side.

        Returns:
            Logits `N×num_classes`.
        """


def pad_image(x: Tensor) -> Tensor:
    """Pad images with zeros at the bottom and on the right to at least 32 pixels on each side.

    Args:
        x: Images `N×3×H×W`.

    Returns:
        Images `N×3×H×W`, or `x` itself if it is large enough.

    Raises:
        ConfigError: `x` does not have four dimensions and three channels, or its images have no pixels.
    """
    if x.dim() != 4 or x.shape[1] != 3:
        raise ConfigError(f"input of shape {tuple(x.shape)}: expected a batch of RGB images, N x 3 x H x W")
    height, width = x.shape[-2:]
    if height >= MIN_SIDE and width >= MIN_SIDE:
        return x
    if height == 0 or width == 0:
        raise ConfigError(f"input of shape {tuple(x.shape)}: the images have no pixels")
    return F.pad(x, (0, max(0, MIN_SIDE - width), 0, max(0, MIN_SIDE - height)))


def check_drop_path_rate(rate: float) -> None:
    """Check that a stochastic depth rate is in [0, 1).

    Args:
        rate: The stochastic depth rate.

    Raises:
        ConfigError: The rate is out of range.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"drop_path_rate = {rate!r}: expected 0 or more and less than 1.")


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Compute the stochastic depth rate of every block, rising linearly from 0 to `rate`.

    Args:
        rate: Stochastic depth rate of the last block, in [0, 1).
        depths: Number of blocks of each stage.

    Returns:
        One list per stage, with one rate per block.

    Raises:
        ConfigError: The rate is out of range.
    """
    check_drop_path_rate(rate)
    total = sum(depths)
    rates = iter(rate * n / max(1, total - 1) for n in range(total))
    return [[next(rates) for _ in range(depth)] for depth in depths]
