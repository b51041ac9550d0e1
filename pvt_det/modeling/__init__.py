"""Detectron2 models built on PVT. Importing this package registers them with Detectron2."""

from pvt_det.modeling import (  # noqa: F401
    backbone,
    fpn,
    rcnn,
    retinanet,
    roi_heads,
    rt_detr,
    semantic,
    timm_backbone,
)
