"""Draw a training batch as the model sees it, to check the labels and augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances, PolygonMasks
from PIL import Image

from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.label_pictures import draw_legend, legend_entries, paint
from pvt_det.utils.visualizer import MAX_SHOWN, Picture, caption_of, captioned, draw, sheet

_MAX_IMAGES = 8
_COLUMNS = 4
_WIDTH, _MAX_HEIGHT = 320, 4000


def save_batch_picture(
    batch: Sequence[dict[str, Any]],
    path: Path,
    *,
    class_names: Sequence[str],
    image_format: str,
    label_names: Sequence[str] = (),
    ignore_value: int = 255,
) -> None:
    """Save a drawing of the first eight images of a batch with their labels.

    Labels are boxes and masks, or a label map. At most 300 objects per image are drawn, and a caption says if there are
    more. Label maps are painted in the colors of a legend below the images.

    Args:
        batch: Samples from the mapper, each with `image` (`3×H×W`), and `instances` or `sem_seg`.
        path: JPEG file to write.
        class_names: Class names of the objects by contiguous class index. If a name is missing, indices are drawn
            instead.
        image_format: Order of the channels, "RGB" or "BGR".
        label_names: Class names of the label maps by class index.
        ignore_value: Value of the pixels without a class in the label maps, `MODEL.SEM_SEG_HEAD.IGNORE_VALUE`. They are
            striped.
    """
    shown = batch[:_MAX_IMAGES]
    picture = sheet([_picture(sample, class_names, image_format, ignore_value) for sample in shown], _COLUMNS)
    if maps := [sample["sem_seg"].numpy() for sample in shown if "sem_seg" in sample]:
        legend = draw_legend(legend_entries(maps, label_names, ignore_value), picture.shape[1])
        picture = np.concatenate([picture, legend])
    Image.fromarray(picture).save(path, quality=90)


def _picture(sample: dict[str, Any], class_names: Sequence[str], image_format: str, ignore_value: int) -> Picture:
    image = sample["image"].permute(1, 2, 0).numpy()
    image = np.ascontiguousarray(image if image_format == "RGB" else image[:, :, ::-1])
    if "sem_seg" in sample:
        image = paint(image, sample["sem_seg"].numpy(), ignore_value)
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
