"""Label maps and panoptic files of the generated shapes set, for segmentation.

Beside `annotations/instances_<split>.json` stand

- `semantic_<split>/`: label maps, 0 the background and c+1 for category c;
- `panoptic_<split>/` and `annotations/panoptic_<split>.json`: COCO's panoptic format, the background being stuff;
- `panoptic_stuff_<split>/`: label maps for Panoptic FPN, 0 all things and 1 the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Category id of the background, behind those of the shapes.
BACKGROUND_ID = 5
_BACKGROUND_SEGMENT = 1


def make_folders(root: Path, split: str) -> None:
    """Make the folders of a split's label maps."""
    for kind in ("semantic", "panoptic", "panoptic_stuff"):
        (root / f"{kind}_{split}").mkdir(parents=True, exist_ok=True)


def write_labels(
    root: Path, split: str, image: dict[str, Any], masks: Sequence[NDArray[np.bool_]], objects: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Write the three files of one image.

    Args:
        root: the set's folder.
        split: "train" or "val".
        image: entry of the json, with `id`, `file_name`, `height` and `width`.
        masks: visible pixels of each shape, `H×W`; no two overlap.
        objects: COCO's annotations of the shapes.

    Returns:
        The image's annotation in COCO's panoptic format.
    """
    semantic = np.zeros((image["height"], image["width"]), dtype=np.uint8)
    segments = np.full_like(semantic, _BACKGROUND_SEGMENT)
    infos = []
    for number, (mask, shape) in enumerate(zip(masks, objects, strict=True), start=_BACKGROUND_SEGMENT + 1):
        semantic[mask] = shape["category_id"]
        segments[mask] = number
        infos.append({"id": number, **{key: shape[key] for key in ("category_id", "bbox", "area", "iscrowd")}})
    background = segments == _BACKGROUND_SEGMENT
    whole = {"bbox": [0, 0, image["width"], image["height"]], "area": int(background.sum()), "iscrowd": 0}
    infos.append({"id": _BACKGROUND_SEGMENT, "category_id": BACKGROUND_ID, **whole})
    # Segment ids are written as R + 256 G + 256² B.
    colours = np.stack([segments, np.zeros_like(segments), np.zeros_like(segments)], axis=2)
    name = image["file_name"]
    for kind, pixels in (
        ("semantic", semantic),
        ("panoptic", colours),
        ("panoptic_stuff", background.astype(np.uint8)),
    ):
        Image.fromarray(pixels).save(root / f"{kind}_{split}" / name)
    return {"image_id": image["id"], "file_name": name, "segments_info": infos}


def panoptic_json(instances: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """COCO's panoptic json of a split, from its instances json and `write_labels`' annotations."""
    things = [{**category, "isthing": 1} for category in instances["categories"]]
    background = {"id": BACKGROUND_ID, "name": "background", "supercategory": "stuff", "isthing": 0}
    return {**instances, "annotations": annotations, "categories": [*things, background]}
