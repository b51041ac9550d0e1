"""Detectron2 models built on PVT. Importing this package registers them with Detectron2."""

from pvt_det.modeling import atss, backbone, fpn, gfl, rcnn, retinanet, roi_heads, semantic, timm_backbone  # noqa: F401
