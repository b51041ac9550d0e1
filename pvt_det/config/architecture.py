"""Which kind of model a config describes. All code that depends on the meta-architecture uses these functions."""

from __future__ import annotations

from detectron2.config import CfgNode

SEGMENTOR = "SemanticSegmentor"
_PANOPTIC = "PanopticFPN"


def is_retinanet(cfg: CfgNode) -> bool:
    """Return whether the model is a RetinaNet, this package's or Detectron2's.

    Args:
        cfg: A complete config.
    """
    return "RetinaNet" in cfg.MODEL.META_ARCHITECTURE


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


def head_key(cfg: CfgNode) -> str:
    """Return the name of the MODEL section with a detector's number of classes and thresholds.

    Args:
        cfg: A complete config.
    """
    return "RETINANET" if is_retinanet(cfg) else "ROI_HEADS"


def anchor_levels_key(cfg: CfgNode) -> str:
    """Return the config key that lists the feature maps with anchors.

    Args:
        cfg: A complete config.
    """
    return "MODEL.RETINANET.IN_FEATURES" if is_retinanet(cfg) else "MODEL.RPN.IN_FEATURES"


def model_name(cfg: CfgNode) -> str:
    """Return a readable name of head and backbone, such as "RetinaNet pvt_tiny" or "Mask R-CNN R50".

    Args:
        cfg: A complete config.
    """
    is_pvt = "pvt" in cfg.MODEL.BACKBONE.NAME
    return f"{_head_name(cfg)} {cfg.MODEL.PVT.VARIANT if is_pvt else f'R{cfg.MODEL.RESNETS.DEPTH}'}"


def _head_name(cfg: CfgNode) -> str:
    if is_retinanet(cfg):
        return "RetinaNet"
    if is_segmentor(cfg):
        return "Semantic FPN"
    if is_panoptic(cfg):
        return "Panoptic FPN"
    if "GeneralizedRCNN" not in cfg.MODEL.META_ARCHITECTURE:
        return cfg.MODEL.META_ARCHITECTURE
    if "Cascade" in cfg.MODEL.ROI_HEADS.NAME:
        return "Cascade Mask R-CNN" if cfg.MODEL.MASK_ON else "Cascade R-CNN"
    return "Mask R-CNN" if cfg.MODEL.MASK_ON else "Faster R-CNN"
