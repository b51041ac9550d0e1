"""From the images that a user has to the maps that the heads take."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.modeling import Backbone
from torch import Tensor, nn

from pvt_det.errors import ConfigError


class Normalize(nn.Module):
    """Images `N×3×H×W`, RGB, uint8, as the model takes them: floats, in its order of channels, mean 0, deviation 1.

    Args:
        mean: Of the model's three channels, in 0 … 255.
        std: Likewise.
        bgr: Whether the model takes blue first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, *, bgr: bool) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone().float().view(3, 1, 1))
        self.register_buffer("std", std.detach().clone().float().view(3, 1, 1))
        self.bgr = bgr

    def forward(self, images: Tensor) -> Tensor:
        """Normalise."""
        images = images.float()
        return ((images.flip(1) if self.bgr else images) - self.mean) / self.std


class Features(nn.Module):
    """Detectron2's backbone with what comes before it: normalising, and padding with zeros to a multiple of its stride.

    Raises:
        ConfigError: The backbone wants square images.
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
            raise ConfigError("this backbone pads images to a fixed square: such a model cannot be exported.")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps of images `N×3×H×W`, uint8."""
        height, width = images.shape[-2:]
        # Written so that whoever reasons about open sizes sees the multiple.
        rows, columns = (height + self.divisor - 1) // self.divisor, (width + self.divisor - 1) // self.divisor
        pad = (0, columns * self.divisor - width, 0, rows * self.divisor - height)
        return self.backbone(F.pad(self.normalize(images), pad))
