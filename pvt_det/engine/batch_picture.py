"""A picture of a training batch, as the model gets it: the proof of labels and augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances, PolygonMasks
from PIL import Image

from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.visualizer import MAX_SHOWN, Picture, caption_of, captioned, class_colors, draw, sheet

_MOST = 8
_COLUMNS = 4
_WIDTH, _LONGEST = 320, 4000


def save_batch_picture(
    batch: Sequence[dict[str, Any]], path: Path, *, class_names: Sequence[str], image_format: str
) -> None:
    """Save the first images of a mapped batch with their boxes and masks, or with their label maps.

    Of the objects of an image, the first 300 are drawn; a line above it tells.

    Args:
        batch: what the mapper gave: `image`, and `instances` or `sem_seg`.
        path: JPEG file to write.
        class_names: by class number; without names, the numbers are drawn.
        image_format: "RGB" or "BGR", the order of the channels.
    """
    pictures = [_picture(sample, class_names, image_format) for sample in batch[:_MOST]]
    Image.fromarray(sheet(pictures, _COLUMNS)).save(path, quality=90)


def _picture(sample: dict[str, Any], class_names: Sequence[str], image_format: str) -> Picture:
    image = sample["image"].permute(1, 2, 0).numpy()
    image = np.ascontiguousarray(image if image_format == "RGB" else image[:, :, ::-1])
    if "sem_seg" in sample:
        image = _with_labels(image, sample["sem_seg"].numpy())
    count = len(sample["instances"]) if "instances" in sample else 0
    objects = _objects(sample["instances"][:MAX_SHOWN]) if count else []
    most = max((o["category_id"] for o in objects), default=-1)
    names = class_names if most < len(class_names) else [str(number) for number in range(most + 1)]
    picture = draw(image, objects, names, _WIDTH, _LONGEST)
    caption = caption_of("", count)
    return captioned(picture, caption) if caption else picture


def _objects(instances: Instances) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
        for box, label in zip(instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist(), strict=True)
    ]
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        found = masks.polygons if isinstance(masks, PolygonMasks) else RunLengthMasks.encode(masks.tensor).rles()
        for shown, mask in zip(objects, found, strict=True):
            shown["segmentation"] = mask
    return objects


def _with_labels(image: Picture, labels: np.ndarray) -> Picture:
    """Half of each pixel's colour from its class; unlabelled ones stay."""
    tinted = (image // 2 + class_colors()[labels.clip(0, 255)] // 2).astype(np.uint8)
    return np.where((labels == 255)[:, :, None], image, tinted)
