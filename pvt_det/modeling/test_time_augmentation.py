"""Test-time augmentation: an image is seen at several sizes and mirrored, and what is found is merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from fvcore.transforms import HFlipTransform
from torch import nn
from torchvision.ops import batched_nms

from pvt_det.data.augmentation.transforms import ResizeShortSide
from pvt_det.errors import ConfigError


def with_views(cfg: CfgNode, model: nn.Module) -> tuple[CfgNode, nn.Module]:
    """The config and the model to test with: with `TEST.AUG.ENABLED`, a model that sees several views of each image.

    Args:
        cfg: A complete config.
        model: A bare detector built from it.

    Returns:
        `cfg` and `model` themselves without `TEST.AUG.ENABLED`. Otherwise a config whose images come at their own
        size, to be resized but once, and a model with the same inputs and outputs.

    Raises:
        ConfigError: The model is no detector of boxes or masks alone, or no size is named.
    """
    if not cfg.TEST.AUG.ENABLED:
        return cfg, model
    if not cfg.TEST.AUG.MIN_SIZES or min(cfg.TEST.AUG.MIN_SIZES) < 1:
        raise ConfigError(f"TEST.AUG.MIN_SIZES = {cfg.TEST.AUG.MIN_SIZES}: expected one or more short sides in pixels.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0
    if isinstance(model, RetinaNet):
        return cfg, RetinaNetWithViews(cfg, model)
    # Panoptic FPN is a GeneralizedRCNN too, whose other branch Detectron2's class would leave out.
    if isinstance(model, GeneralizedRCNN) and cfg.MODEL.META_ARCHITECTURE != "PanopticFPN":
        # As many views a batch as are of one size: PVT's maps depend on the padding.
        return cfg, RCNNWithViews(cfg, model, Views(cfg), batch_size=2 if cfg.TEST.AUG.FLIP else 1)
    raise ConfigError(f"TEST.AUG.ENABLED: {cfg.MODEL.META_ARCHITECTURE} has no test-time augmentation; set False.")


class Views:
    """Makes the views of an image that `TEST.AUG` names: for each short side one, and its mirror image with FLIP.

    Args:
        cfg: `TEST.AUG` and `INPUT.RESIZE_BACKEND` are read.
    """

    def __init__(self, cfg: CfgNode) -> None:
        settings = cfg.TEST.AUG
        self.resizes = [
            ResizeShortSide((side,), settings.MAX_SIZE, "choice", cfg.INPUT.RESIZE_BACKEND)
            for side in settings.MIN_SIZES
        ]
        self.flip = bool(settings.FLIP)

    def __call__(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Give records like `record`, each with its `image` (`3×H×W`) and the `transforms` that made it."""
        image = record["image"].permute(1, 2, 0).numpy()
        views = []
        for resize in self.resizes:
            resized = resize.get_transform(image)
            plain = T.TransformList([resized])
            views.append(_view(record, image, plain))
            if self.flip:
                width = views[-1]["image"].shape[2]
                views.append(_view(record, image, plain + HFlipTransform(width)))
        return views


def _view(record: dict[str, Any], image: np.ndarray, transforms: T.TransformList) -> dict[str, Any]:
    pixels = np.ascontiguousarray(transforms.apply_image(image).transpose(2, 0, 1))
    return {**record, "image": torch.from_numpy(pixels), "transforms": transforms}


class RCNNWithViews(GeneralizedRCNNWithTTA):
    """Detectron2's class, which an error does not leave without masks for the images that follow."""

    @contextmanager
    def _turn_off_roi_heads(self, attrs: Sequence[str]) -> Iterator[None]:
        heads = self.model.roi_heads
        before = {name: getattr(heads, name) for name in attrs if hasattr(heads, name)}
        try:
            for name in before:
                setattr(heads, name, False)
            yield
        finally:
            for name, value in before.items():
                setattr(heads, name, value)


class RetinaNetWithViews(nn.Module):
    """RetinaNet over several views; their boxes are merged by non-maximum suppression within each class.

    Args:
        cfg: `TEST.AUG`, `TEST.DETECTIONS_PER_IMAGE` and `MODEL.RETINANET.NMS_THRESH_TEST` are read.
        model: The detector.
    """

    def __init__(self, cfg: CfgNode, model: RetinaNet) -> None:
        super().__init__()
        self.model = model
        self.views = Views(cfg)
        self.nms_threshold = cfg.MODEL.RETINANET.NMS_THRESH_TEST
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect; inputs and outputs are those of the detector."""
        return [{"instances": self._detect(record)} for record in batched_inputs]

    def _detect(self, record: dict[str, Any]) -> Instances:
        size = (record["height"], record["width"])
        found = []
        for _, group in groupby(self.views(record), key=lambda view: view["image"].shape):
            views = list(group)
            outputs = self.model([{"image": view["image"]} for view in views])
            found += [
                _moved_back(output["instances"], view["transforms"], size)
                for output, view in zip(outputs, views, strict=True)
            ]
        merged = Instances.cat(found)
        kept = batched_nms(merged.pred_boxes.tensor, merged.scores, merged.pred_classes, self.nms_threshold)
        return merged[kept[: self.max_detections]]


def _moved_back(found: Instances, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
    """Detections of a view as they lie in the image of `size`, height and width."""
    tensor = found.pred_boxes.tensor
    boxes = Boxes(torch.from_numpy(transforms.inverse().apply_box(tensor.cpu().numpy())).to(tensor))
    boxes.clip(size)
    return Instances(size, pred_boxes=boxes, scores=found.scores, pred_classes=found.pred_classes)
