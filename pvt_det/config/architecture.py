"""Which kind of model a config describes. All code that depends on the meta-architecture uses these functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pvt_det.models.variants import STAGES, STRIDES

if TYPE_CHECKING:
    from detectron2.config import CfgNode

SEGMENTOR = "SemanticSegmentor"
_PANOPTIC = "PanopticFPN"
# One-stage detectors with one anchor per position, whose MODEL section has the name of the meta-architecture.
_ADAPTIVE = ("ATSS", "GFL")
# Detectors without anchors and NMS: the MODEL section of the head, and its readable name.
_QUERY_DETECTORS = {
    "PVTDETR": ("DETR", "DETR"),
    "PVTRTDETR": ("RT_DETR", "RT-DETRv2"),
    "PVTSparseRCNN": ("SPARSE_RCNN", "Sparse R-CNN"),
}
# Sections of MODEL with the number of classes and the score threshold of a detector.
HEADS = ("RETINANET", *_ADAPTIVE, *(section for section, _ in _QUERY_DETECTORS.values()), "ROI_HEADS")
# Backbone: the MODEL section of its trunk, and the number of levels above the trunk's in its FPN (0: no FPN).
_TRUNKS = {
    "build_pvt_backbone": ("PVT", 0),
    "build_pvt_fpn_backbone": ("PVT", 1),
    "build_retinanet_pvt_fpn_backbone": ("PVT", 2),
    "build_timm_backbone": ("TIMM", 0),
    "build_timm_fpn_backbone": ("TIMM", 1),
    "build_retinanet_timm_fpn_backbone": ("TIMM", 2),
    "build_resnet_backbone": ("RESNETS", 0),
    "build_resnet_fpn_backbone": ("RESNETS", 1),
    "build_retinanet_resnet_fpn_backbone": ("RESNETS", 2),
    "build_retinanet_resnet_fpn_p6p7_backbone": ("RESNETS", 2),
}


def is_retinanet(cfg: CfgNode) -> bool:
    """Return whether the model is a RetinaNet, this package's or Detectron2's.

    Args:
        cfg: A complete config.
    """
    return "RetinaNet" in cfg.MODEL.META_ARCHITECTURE


def has_adaptive_anchors(cfg: CfgNode) -> bool:
    """Return whether the model is ATSS or GFL, which match one anchor per position with boxes adaptively.

    Args:
        cfg: A complete config.
    """
    return cfg.MODEL.META_ARCHITECTURE in _ADAPTIVE


def is_one_stage(cfg: CfgNode) -> bool:
    """Return whether the model predicts boxes from anchors in a single step: RetinaNet, ATSS or GFL.

    Args:
        cfg: A complete config.
    """
    return is_retinanet(cfg) or has_adaptive_anchors(cfg)


def is_segmentor(cfg: CfgNode) -> bool:
    """Return whether the model is a semantic segmentor, which classifies pixels and detects no objects.

    Args:
        cfg: A complete config.
    """
    return cfg.MODEL.META_ARCHITECTURE == SEGMENTOR


def is_panoptic(cfg: CfgNode) -> bool:
    """Return whether the model does panoptic segmentation: it detects objects and classifies pixels.

    Args:
        cfg: A complete config.
    """
    return cfg.MODEL.META_ARCHITECTURE == _PANOPTIC


def has_label_maps(cfg: CfgNode) -> bool:
    """Return whether the model is trained on label maps, alone or in addition to boxes and masks.

    Args:
        cfg: A complete config.
    """
    return is_segmentor(cfg) or is_panoptic(cfg)


def is_rcnn(cfg: CfgNode) -> bool:
    """Return whether the model proposes boxes and classifies them in a second step, as Faster R-CNN.

    Args:
        cfg: A complete config.
    """
    return "GeneralizedRCNN" in cfg.MODEL.META_ARCHITECTURE or is_panoptic(cfg)


def is_query_detector(cfg: CfgNode) -> bool:
    """Return whether the model predicts a fixed set of boxes, without anchors and non-maximum suppression.

    Args:
        cfg: A complete config.
    """
    return cfg.MODEL.META_ARCHITECTURE in _QUERY_DETECTORS


def is_multi_step(cfg: CfgNode) -> bool:
    """Return whether the learning rate falls at SOLVER.STEPS.

    Args:
        cfg: A complete config.
    """
    return bool(cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR")


def trunk_section(cfg: CfgNode) -> str:
    """Return the name of the MODEL section that describes the trunk, or "" for a backbone of another package.

    Args:
        cfg: A complete config.
    """
    return _TRUNKS.get(cfg.MODEL.BACKBONE.NAME, ("", 0))[0]


def has_fpn(cfg: CfgNode) -> bool:
    """Return whether the backbone has an FPN. False for a backbone of another package.

    Args:
        cfg: A complete config.
    """
    return _TRUNKS.get(cfg.MODEL.BACKBONE.NAME, ("", 0))[1] > 0


def trunk_strides(cfg: CfgNode) -> dict[str, int]:
    """Return the strides of the feature maps that the trunk returns, by name, from fine to coarse.

    Args:
        cfg: A complete config, with a backbone of this package or of Detectron2.
    """
    if trunk_section(cfg) in ("PVT", "TIMM"):
        strides = dict(zip(STAGES, STRIDES, strict=True))
    else:
        last = 32 if cfg.MODEL.RESNETS.RES5_DILATION == 1 else 16
        strides = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": last}
    return {name: strides[name] for name in cfg.MODEL[trunk_section(cfg)].OUT_FEATURES}


def feature_strides(cfg: CfgNode) -> dict[str, int]:
    """Return the strides of the feature maps that the backbone returns, by name, from fine to coarse.

    Args:
        cfg: A complete config, with a backbone of this package or of Detectron2 and valid features of its FPN.
    """
    strides = trunk_strides(cfg)
    extra_levels = _TRUNKS[cfg.MODEL.BACKBONE.NAME][1]
    if not extra_levels:
        return strides
    levels = [int(math.log2(strides[name])) for name in cfg.MODEL.FPN.IN_FEATURES]
    levels += range(levels[-1] + 1, levels[-1] + 1 + extra_levels)
    return {f"p{level}": 2**level for level in levels}


def head_key(cfg: CfgNode) -> str:
    """Return the name of the MODEL section with a detector's number of classes and thresholds.

    Args:
        cfg: A complete config.
    """
    if has_adaptive_anchors(cfg):
        return str(cfg.MODEL.META_ARCHITECTURE)
    if is_query_detector(cfg):
        return _QUERY_DETECTORS[cfg.MODEL.META_ARCHITECTURE][0]
    return "RETINANET" if is_retinanet(cfg) else "ROI_HEADS"


def anchor_levels_key(cfg: CfgNode) -> str:
    """Return the config key that lists the feature maps with anchors.

    Args:
        cfg: A complete config.
    """
    return f"MODEL.{head_key(cfg) if is_one_stage(cfg) else 'RPN'}.IN_FEATURES"


def model_name(cfg: CfgNode) -> str:
    """Return a readable name of head and backbone, such as "RetinaNet pvt_tiny" or "Mask R-CNN R50".

    Args:
        cfg: A complete config.
    """
    return f"{_head_name(cfg)} {_trunk_name(cfg)}"


def _trunk_name(cfg: CfgNode) -> str:
    if trunk_section(cfg) == "PVT":
        return str(cfg.MODEL.PVT.VARIANT)
    return str(cfg.MODEL.TIMM.NAME) if trunk_section(cfg) == "TIMM" else f"R{cfg.MODEL.RESNETS.DEPTH}"


def _head_name(cfg: CfgNode) -> str:
    if is_retinanet(cfg):
        return "RetinaNet"
    if is_query_detector(cfg):
        return _QUERY_DETECTORS[cfg.MODEL.META_ARCHITECTURE][1]
    if is_segmentor(cfg):
        return "Semantic FPN"
    if is_panoptic(cfg):
        return "Panoptic FPN"
    if "GeneralizedRCNN" not in cfg.MODEL.META_ARCHITECTURE:
        return cfg.MODEL.META_ARCHITECTURE
    if "Cascade" in cfg.MODEL.ROI_HEADS.NAME:
        return "Cascade Mask R-CNN" if cfg.MODEL.MASK_ON else "Cascade R-CNN"
    return "Mask R-CNN" if cfg.MODEL.MASK_ON else "Faster R-CNN"
