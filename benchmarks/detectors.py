"""Whole detectors with inputs made of noise."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import pvt_det.modeling  # noqa: F401  (registers the builders)
from pvt_det.config import load_config

_BOXES = 10


def build_detector(config_file: str, checkpoint_stages: set[int]) -> nn.Module:
    """Build the detector of a config with fresh weights, on the CPU."""
    overrides: list[Any] = ["MODEL.DEVICE", "cpu"]
    if checkpoint_stages:
        overrides += ["MODEL.PVT.CHECKPOINT_STAGES", sorted(checkpoint_stages)]
    return build_model(load_config(config_file, overrides))


def run_detector(model: nn.Module, inputs: list[dict[str, Any]]) -> Any:
    """What a detector gives: losses in training, for which Detectron2 wants a place for its own numbers."""
    with EventStorage():
        return model(inputs)


def random_annotations(images: Tensor) -> list[dict[str, Any]]:
    """Turn images `N×3×H×W` into a detector's input: ten random boxes each, with rectangles for masks, all class 0."""
    height, width = images.shape[-2:]
    scale = torch.tensor([width, height, width, height])
    inputs = []
    for image in images:
        corners = torch.rand(_BOXES, 2) * 0.5
        boxes = torch.cat([corners, corners + 0.1 + 0.4 * torch.rand(_BOXES, 2)], dim=1) * scale
        masks = [[box[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for box in boxes]
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(boxes),
            gt_classes=torch.zeros(_BOXES, dtype=torch.long),
            gt_masks=PolygonMasks(masks),
        )
        inputs.append({"image": image, "height": height, "width": width, "instances": instances.to(image.device)})
    return inputs
