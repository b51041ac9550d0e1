"""Draw a training batch as the model sees it, to check the labels and augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances, PolygonMasks
from PIL import Image

from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.visualizer import MAX_SHOWN, Picture, caption_of, captioned, class_colors, draw, sheet

_MAX_IMAGES = 8
_COLUMNS = 4
_WIDTH, _MAX_HEIGHT = 320, 4000


def save_batch_picture(
    batch: Sequence[dict[str, Any]], path: Path, *, class_names: Sequence[str], image_format: str
) -> None:
    """Save a drawing of the first eight images of a batch with their labels.

    Labels are boxes and masks, or a label map. At most 300 objects per image are drawn, and a caption says if there are
    more.

    Args:
        batch: Samples from the mapper, each with `image` (`3×H×W`), and `instances` or `sem_seg`.
        path: JPEG file to write.
        class_names: Class names by contiguous class index. If a name is missing, indices are drawn instead.
        image_format: Order of the channels, "RGB" or "BGR".
    """
    pictures = [_picture(sample, class_names, image_format) for sample in batch[:_MAX_IMAGES]]
    Image.fromarray(sheet(pictures, _COLUMNS)).save(path, quality=90)


def _picture(sample: dict[str, Any], class_names: Sequence[str], image_format: str) -> Picture:
    image = sample["image"].permute(1, 2, 0).numpy()
    image = np.ascontiguousarray(image if image_format == "RGB" else image[:, :, ::-1])
    if "sem_seg" in sample:
        image = _with_labels(image, sample["sem_seg"].numpy())
    count = len(sample["instances"]) if "instances" in sample else 0
    objects = _objects(sample["instances"][:MAX_SHOWN]) if count else []
    highest = max((o["category_id"] for o in objects), default=-1)
    names = class_names if highest < len(class_names) else [str(index) for index in range(highest + 1)]
    picture = draw(image, objects, names, _WIDTH, _MAX_HEIGHT)
    caption = caption_of("", count)
    return captioned(picture, caption) if caption else picture


def _objects(instances: Instances) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
        for box, label in zip(instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist(), strict=True)
    ]
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        segmentations = (
            masks.polygons if isinstance(masks, PolygonMasks) else RunLengthMasks.encode(masks.tensor).rles()
        )
        for drawn, segmentation in zip(objects, segmentations, strict=True):
            drawn["segmentation"] = segmentation
    return objects


def _with_labels(image: Picture, labels: np.ndarray) -> Picture:
    """Blend every labeled pixel half and half with the color of its class."""
    tinted = (image // 2 + class_colors()[labels.clip(0, 255)] // 2).astype(np.uint8)
    return np.where((labels == 255)[:, :, None], image, tinted)
