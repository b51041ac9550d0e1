"""Feature pyramid networks (https://arxiv.org/abs/1612.03144) on PVT, and on other trunks for comparison."""

from __future__ import annotations

import math

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
from pvt_det.modeling.timm_backbone import build_timm_backbone


class P6P7(nn.Module):
    """The two coarsest levels of a one-stage detector, P6 and P7.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of P6 and P7.
        in_feature: Name of the input: the backbone's last feature map, as in RetinaNet, or the FPN's P5, as in ATSS.
        relu: Whether to apply a ReLU to P6 before computing P7, as in Detectron2 and the RetinaNet paper. The published
            PVT detectors do not.
    """

    def __init__(self, in_channels: int, out_channels: int, in_feature: str, relu: bool) -> None:
        super().__init__()
        # Detectron2's FPN reads these two attributes.
        self.num_levels = 2
        self.in_feature = in_feature
        self.relu = relu
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute P6 and P7.

        Args:
            x: The input, `N×C×H×W`.

        Returns:
            P6 and P7. Each has half the height and width of its input, rounded up.
        """
        # Disable autocast, because on a CPU, bf16 leaves parts of the weight gradient uninitialized if the input is 1×1
        # (oneDNN, torch 2.14). Such small maps are cheap in fp32 too.
        with torch.autocast(x.device.type, enabled=False):
            p6 = self.p6(x.to(self.p6.weight.dtype))
            return [p6, self.p7(F.relu(p6) if self.relu else p6)]


@register(BACKBONE_REGISTRY)
def build_pvt_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build PVT with an FPN for R-CNN. The last level, P6, is P5 subsampled.

    Args:
        cfg: Complete config. Uses `MODEL.PVT`, `MODEL.FPN` and `MODEL.DEVICE`.
        input_shape: Shape of the images. Must have three channels.

    Raises:
        ConfigError: A value of `MODEL.PVT` or `MODEL.FPN` is invalid, or the images do not have three channels.
    """
    return _build_fpn(cfg, build_pvt_backbone(cfg, input_shape), LastLevelMaxPool())


@register(BACKBONE_REGISTRY)
def build_retinanet_pvt_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build PVT with an FPN for RetinaNet, ATSS and GFL. P6 and P7 are computed from the stage-4 map or P5.

    Args:
        cfg: Complete config. Uses `MODEL.PVT`, `MODEL.FPN` and `MODEL.DEVICE`.
        input_shape: Shape of the images. Must have three channels.

    Raises:
        ConfigError: A value of `MODEL.PVT` or `MODEL.FPN` is invalid, or the images do not have three channels.
    """
    bottom_up = build_pvt_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _build_p6p7(cfg, bottom_up, "stage4"))


@register(BACKBONE_REGISTRY)
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a model of timm with an FPN for R-CNN. The last level, P6, is P5 subsampled.

    Args:
        cfg: Complete config. Uses `MODEL.TIMM` and `MODEL.FPN`.
        input_shape: Shape of the images. Must have three channels.

    Raises:
        ConfigError: A value of `MODEL.TIMM` or `MODEL.FPN` is invalid, or the images do not have three channels.
    """
    return _build_fpn(cfg, build_timm_backbone(cfg, input_shape), LastLevelMaxPool())


@register(BACKBONE_REGISTRY)
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a model of timm with an FPN for RetinaNet, ATSS and GFL. P6 and P7 are computed from the stage-4 map or P5.

    Args:
        cfg: Complete config. Uses `MODEL.TIMM` and `MODEL.FPN`.
        input_shape: Shape of the images. Must have three channels.

    Raises:
        ConfigError: A value of `MODEL.TIMM` or `MODEL.FPN` is invalid, or the images do not have three channels.
    """
    bottom_up = build_timm_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _build_p6p7(cfg, bottom_up, "stage4"))


@register(BACKBONE_REGISTRY)
def build_retinanet_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNet with an FPN for RetinaNet, ATSS and GFL. P6 and P7 are computed from the res5 map or P5.

    Unlike Detectron2's builder, this one supports `MODEL.FPN.P7_RELU`.

    Args:
        cfg: Complete config. Uses `MODEL.RESNETS`, `MODEL.BACKBONE` and `MODEL.FPN`.
        input_shape: Shape of the images.

    Raises:
        ConfigError: A value of `MODEL.FPN` is invalid, or the backbone does not return res5.
    """
    bottom_up = build_resnet_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, _build_p6p7(cfg, bottom_up, "res5"))


def _build_p6p7(cfg: CfgNode, bottom_up: Backbone, in_feature: str) -> P6P7:
    shapes = bottom_up.output_shape()
    if in_feature not in shapes:
        raise ConfigError(f"OUT_FEATURES of the backbone = {list(shapes)}: P6 needs {in_feature}. Add it.")
    channels = shapes[in_feature].channels
    if cfg.MODEL.FPN.P6_INPUT == "fpn":
        level = int(math.log2(shapes[in_feature].stride))
        channels, in_feature = cfg.MODEL.FPN.OUT_CHANNELS, f"p{level}"
    return P6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature, relu=cfg.MODEL.FPN.P7_RELU)


def _build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    shapes = bottom_up.output_shape()
    missing = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in shapes]
    if missing or not cfg.MODEL.FPN.IN_FEATURES:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES = {cfg.MODEL.FPN.IN_FEATURES}: expected feature maps of the backbone, its "
            f"OUT_FEATURES: {', '.join(shapes)}."
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
