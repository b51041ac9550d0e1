"""Detectron2 adapters. Importing this package registers them."""

from pvt_det.modeling import backbone, fpn, rcnn, retinanet, roi_heads, semantic  # noqa: F401
