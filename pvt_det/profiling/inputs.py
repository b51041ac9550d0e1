"""Random images, and random annotations for detectors and segmentors."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import Tensor

_BOXES = 10


def random_records(images: Tensor) -> list[dict[str, Any]]:
    """Turn images into the input of a Detectron2 model, with what any head needs in training.

    Each image gets ten random boxes with rectangular masks, and a label map. All objects and pixels are of class 0,
    which every model has.

    Args:
        images: `N×3×H×W`.

    Returns:
        One record per image. Its annotations are on the device of the images.
    """
    height, width = images.shape[-2:]
    return [
        {
            "image": image,
            "height": height,
            "width": width,
            "instances": _random_instances(height, width).to(image.device),
            "sem_seg": torch.zeros(height, width, dtype=torch.long, device=image.device),
        }
        for image in images
    ]


def _random_instances(height: int, width: int) -> Instances:
    corners = torch.rand(_BOXES, 2) * 0.5
    scale = torch.tensor([width, height, width, height])
    boxes = torch.cat([corners, corners + 0.1 + 0.4 * torch.rand(_BOXES, 2)], dim=1) * scale
    return Instances(
        (height, width),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.zeros(_BOXES, dtype=torch.long),
        gt_masks=PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()] for box in boxes]),
    )
