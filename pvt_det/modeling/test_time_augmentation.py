"""Test-time augmentation (TTA): merge the detections of resized and flipped copies of an image."""

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
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from fvcore.transforms import HFlipTransform
from torch import nn
from torchvision.ops import batched_nms

from pvt_det.errors import ConfigError
from pvt_det.modeling.query_detector import QueryDetector


def build_tta(cfg: CfgNode, model: nn.Module, resizes: Sequence[T.Augmentation]) -> tuple[CfgNode, nn.Module]:
    """Wrap a model with test-time augmentation if the config enables it.

    Args:
        cfg: Complete config. Uses `TEST.AUG`.
        model: Detector built from `cfg`, not wrapped in `DistributedDataParallel`.
        resizes: Augmentations that resize an image, one for each of `TEST.AUG.MIN_SIZES`.

    Returns:
        If `TEST.AUG.ENABLED` is false, `cfg` and `model` unchanged. Otherwise a config that loads test images at their
        original size, so that they are resized only once, and a model with the same inputs and outputs.

    Raises:
        ConfigError: `TEST.AUG.MIN_SIZES` is empty or not positive, or the meta-architecture is not supported.
    """
    settings = cfg.TEST.AUG
    if not settings.ENABLED:
        return cfg, model
    if not settings.MIN_SIZES or min(settings.MIN_SIZES) < 1:
        raise ConfigError(f"TEST.AUG.MIN_SIZES = {settings.MIN_SIZES}: expected one or more short sides in pixels.")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0
    mapper = TTAMapper(resizes, flip=bool(settings.FLIP))
    if isinstance(model, DenseDetector | QueryDetector):
        return cfg, BoxDetectorWithTTA(model, mapper, model.test_nms_thresh, cfg.TEST.DETECTIONS_PER_IMAGE)
    # PanopticFPN is also a GeneralizedRCNN, but Detectron2's TTA class would drop its semantic branch.
    if isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN):
        # Only views with the same size share a batch, because PVT's feature maps depend on the padding.
        return cfg, RCNNWithTTA(cfg, model, mapper, batch_size=2 if settings.FLIP else 1)
    raise ConfigError(
        f"TEST.AUG.ENABLED: {cfg.MODEL.META_ARCHITECTURE} does not support test-time augmentation. Set it to False."
    )


class TTAMapper:
    """Create the augmented views of an image: one for each resize, each with an optional flipped copy.

    Args:
        resizes: Augmentations that resize an image.
        flip: Whether to add a horizontally flipped copy of each view.
    """

    def __init__(self, resizes: Sequence[T.Augmentation], *, flip: bool) -> None:
        self.resizes = tuple(resizes)
        self.flip = flip

    def __call__(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Create the views of an image.

        Args:
            record: Dictionary with the `image` as a tensor `3×H×W`.

        Returns:
            Copies of `record`, each with its own `image` and the `transforms` that were applied to it.
        """
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


class RCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's class, but restores its heads after an error, so that later images get masks."""

    @contextmanager
    def _turn_off_roi_heads(self, attrs: Sequence[str]) -> Iterator[None]:
        heads = self.model.roi_heads
        original = {name: getattr(heads, name) for name in attrs if hasattr(heads, name)}
        try:
            for name in original:
                setattr(heads, name, False)
            yield
        finally:
            for name, value in original.items():
                setattr(heads, name, value)


class BoxDetectorWithTTA(nn.Module):
    """A detector without masks on several views of an image, whose boxes are merged by NMS within each class.

    Args:
        model: A one-stage detector or `QueryDetector`.
        mapper: Mapper that creates the views of an image.
        nms_threshold: IoU of two boxes of the same class, in [0, 1], above which the box with the lower score is
            dropped.
        max_detections: Maximum number of detections per image.
    """

    def __init__(self, model: nn.Module, mapper: TTAMapper, nms_threshold: float, max_detections: int) -> None:
        super().__init__()
        self.model = model
        self.mapper = mapper
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect objects.

        Args:
            batched_inputs: One dictionary per image, with its `image` as a tensor `3×H×W`, and the `height` and `width`
                of the results in pixels.

        Returns:
            `{"instances": Instances}` for each image.
        """
        return [{"instances": self._detect(record)} for record in batched_inputs]

    def _detect(self, record: dict[str, Any]) -> Instances:
        size = (record["height"], record["width"])
        detections = []
        for _, group in groupby(self.mapper(record), key=lambda view: view["image"].shape):
            views = list(group)
            outputs = self.model([{"image": view["image"]} for view in views])
            detections += [
                _to_image(output["instances"], view["transforms"], size)
                for output, view in zip(outputs, views, strict=True)
            ]
        merged = Instances.cat(detections)
        kept = batched_nms(merged.pred_boxes.tensor, merged.scores, merged.pred_classes, self.nms_threshold)
        return merged[kept[: self.max_detections]]


def _to_image(instances: Instances, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
    """Map the detections of a view back to the image, whose height and width in pixels are `size`."""
    tensor = instances.pred_boxes.tensor
    boxes = Boxes(torch.from_numpy(transforms.inverse().apply_box(tensor.cpu().numpy())).to(tensor))
    boxes.clip(size)
    return Instances(size, pred_boxes=boxes, scores=instances.scores, pred_classes=instances.pred_classes)
