"""Normalization, padding and the backbone: from RGB images to the feature maps of the heads."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.modeling import Backbone
from torch import Tensor, nn

from pvt_det.errors import ConfigError


class Normalize(nn.Module):
    """Convert RGB uint8 images to normalized floats in the model's channel order.

    Args:
        mean: Mean of the three channels in the model's order, in 0 … 255.
        std: Standard deviation of the three channels in the model's order, in 0 … 255.
        bgr: Whether the model takes BGR images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, *, bgr: bool) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone().float().view(3, 1, 1))
        self.register_buffer("std", std.detach().clone().float().view(3, 1, 1))
        self.bgr = bgr

    def forward(self, images: Tensor) -> Tensor:
        """Normalize images.

        Args:
            images: Images `N×3×H×W`, RGB, uint8.

        Returns:
            Images `N×3×H×W`, float32.
        """
        images = images.float()
        return ((images.flip(1) if self.bgr else images) - self.mean) / self.std


class Features(nn.Module):
    """Detectron2's backbone with its preprocessing: normalization, and zero-padding to a multiple of its stride.

    Args:
        model: A trained model with a Detectron2 backbone. Its modules are shared, not copied.
        bgr: Whether the model takes BGR images.

    Raises:
        ConfigError: The backbone pads images to a fixed square.
    """

    def __init__(self, model: nn.Module, *, bgr: bool) -> None:
        super().__init__()
        buffers = dict(model.named_buffers())
        self.normalize = Normalize(buffers["pixel_mean"], buffers["pixel_std"], bgr=bgr)
        backbone = model.backbone
        assert isinstance(backbone, Backbone)
        self.backbone = backbone
        self.divisor = backbone.size_divisibility
        if backbone.padding_constraints.get("square_size"):
            raise ConfigError("A model whose backbone pads images to a fixed square cannot be exported.")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps of images.

        Args:
            images: Images `N×3×H×W`, RGB, uint8.

        Returns:
            Feature maps by name, each `N×C×H/stride×W/stride`.
        """
        height, width = images.shape[-2:]
        # Written so that the tracer can infer that the padded size is a multiple of the divisor.
        rows, columns = (height + self.divisor - 1) // self.divisor, (width + self.divisor - 1) // self.divisor
        pad = (0, columns * self.divisor - width, 0, rows * self.divisor - height)
        return self.backbone(F.pad(self.normalize(images), pad))
