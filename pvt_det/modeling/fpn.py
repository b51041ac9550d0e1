"""Feature pyramids (https://arxiv.org/abs/1612.03144) over PVT, and over ResNet for comparison."""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.modeling.backbone import build_pvt_backbone
from pvt_det.modeling.registration import register


class P6P7(nn.Module):
    """RetinaNet's two coarsest maps, from the backbone's last map (not from P5).

    Args:
        in_channels: Channels of that map.
        out_channels: Channels of P6 and P7.
        in_feature: The map's name.
        relu: Whether P7 sees P6 through a ReLU, as in Detectron2 and the RetinaNet paper. The published PVT detectors
            have none.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str, relu: bool) -> None:
        super().__init__()
        # The names that Detectron2's FPN reads.
        self.num_levels = 2
        self.in_feature = in_feature
        self.relu = relu
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return P6 and P7, each half the size of what it is made from, rounded up."""
        # Out of autocast: on CPU, bf16 leaves parts of the weights' gradient unset where the input is 1×1 (oneDNN,
        # torch 2.14), and such maps cost nothing in any format.
        with torch.autocast(x.device.type, enabled=False):
            p6 = self.p6(x.to(self.p6.weight.dtype))
            return [p6, self.p7(F.relu(p6) if self.relu else p6)]


@register(BACKBONE_REGISTRY)
def build_pvt_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """PVT and an FPN whose last level is P5, subsampled: for R-CNN."""
    return _build_fpn(cfg, build_pvt_backbone(cfg, input_shape), LastLevelMaxPool())


@register(BACKBONE_REGISTRY)
def build_retinanet_pvt_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """PVT and an FPN with P6 and P7 from the stage-4 map: for RetinaNet."""
    bottom_up = build_pvt_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _build_p6p7(cfg, bottom_up, "stage4"))


@register(BACKBONE_REGISTRY)
def build_retinanet_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and an FPN with P6 and P7 from the res5 map; unlike Detectron2's, with `MODEL.FPN.P7_RELU`."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _build_p6p7(cfg, bottom_up, "res5"))


def _build_p6p7(cfg: CfgNode, bottom_up: Backbone, in_feature: str) -> P6P7:
    shapes = bottom_up.output_shape()
    if in_feature not in shapes:
        raise ConfigError(f"OUT_FEATURES of the backbone are {list(shapes)}: P6 is made from {in_feature}; add it.")
    return P6P7(shapes[in_feature].channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature, relu=cfg.MODEL.FPN.P7_RELU)


def _build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    shapes = bottom_up.output_shape()
    missing = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in shapes]
    if missing or not cfg.MODEL.FPN.IN_FEATURES:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES = {cfg.MODEL.FPN.IN_FEATURES}: expected maps that the backbone gives out, "
            f"{', '.join(shapes)} (its OUT_FEATURES)."
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
