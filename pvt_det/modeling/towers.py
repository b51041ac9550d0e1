"""The head of ATSS and GFL: two towers of convolutions that all levels share, with a learned scale per level."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn


def build_tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
    """Build a stack of 3×3 convolutions, each followed by its normalization and a ReLU.

    Args:
        channels: Channels of the input and of every layer.
        num_convs: Number of convolutions.
        norm: Name of a normalization of Detectron2, such as "GN". "" uses none, and convolutions with biases.
    """
    return nn.Sequential(
        *(
            Conv2d(channels, channels, 3, padding=1, bias=not norm, norm=get_norm(norm, channels), activation=F.relu)
            for _ in range(num_convs)
        )
    )


class TowerHead(nn.Module):
    """One prediction per position: class logits from one tower, and box values from another one.

    The layers have the names of Detectron2's RetinaNet head and FCOS head.

    Args:
        channels: Channels of the feature maps.
        num_levels: Number of feature maps. The box values of each level are multiplied by a learned scale.
        num_classes: Number of classes, K.
        box_channels: Number of values that describe a box.
        num_convs: Number of convolutions of each tower.
        norm: Name of a normalization of Detectron2, such as "GN". "" uses none.
        prior_prob: Score of all classes at the start of training, in (0, 1).
        centerness: Whether to predict the centerness of each box as well.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_levels: int,
        num_classes: int,
        box_channels: int,
        num_convs: int,
        norm: str,
        prior_prob: float,
        centerness: bool = False,
    ) -> None:
        super().__init__()
        self.cls_subnet = build_tower(channels, num_convs, norm)
        self.bbox_subnet = build_tower(channels, num_convs, norm)
        self.cls_score = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, box_channels, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1) if centerness else None
        self.scales = nn.ParameterList(torch.ones(()) for _ in range(num_levels))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 4:
                nn.init.normal_(parameter, std=0.01)
            elif name.endswith("bias"):
                nn.init.constant_(parameter, math.log(prior_prob / (1 - prior_prob)) if "cls_score" in name else 0)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Predict classes and boxes.

        Args:
            features: Feature maps of each level, `N×C×H_l×W_l`.

        Returns:
            Of each level, logits `N×K×H_l×W_l`, box values `N×B×H_l×W_l` and, if the head has it, logits of the
            centerness `N×1×H_l×W_l`.
        """
        boxes = [self.bbox_subnet(feature) for feature in features]
        logits = [self.cls_score(self.cls_subnet(feature)) for feature in features]
        values = [self.bbox_pred(box) * scale for box, scale in zip(boxes, self.scales, strict=True)]
        if self.centerness is None:
            return logits, values
        return logits, values, [self.centerness(box) for box in boxes]
