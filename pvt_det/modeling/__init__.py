"""Detectron2 models built on PVT. Importing this package registers them with Detectron2."""

from pvt_det.modeling import (  # noqa: F401
    atss,
    backbone,
    cascade,
    detr,
    fpn,
    gfl,
    rcnn,
    retinanet,
    roi_heads,
    rt_detr,
    semantic,
    sparse_rcnn,
    timm_backbone,
)
