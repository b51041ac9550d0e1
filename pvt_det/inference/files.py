"""What is written of detections: COCO's results, pictures, videos and crops."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances
from numpy.typing import NDArray
from PIL import Image

from pvt_det.evaluation.detections import Detections, pack_detections, write_results
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder
from pvt_det.utils.visualizer import Picture, draw

RESULTS_NAME = "results.json"
IMAGES_NAME = "images.json"
_QUALITY = 90
_LEAST_WIDTH = 640  # of pictures, in pixels


class PredictionFiles:
    """The output folder of a prediction.

    `results.json` has the detections in COCO's results format and `images.json` the images and categories that its
    ids mean, in COCO's annotation format. Pictures are `pictures/NAME.jpg`, crops `crops/CLASS/NAME_NUMBER.jpg`.

    Args:
        folder: Made where absent.
        class_names: By class number; a category's id is its number plus 1.
        pictures: Whether to draw the images.
        crops: Whether to cut out every object.

    Raises:
        ConfigError: The folder cannot be made or written in.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], *, pictures: bool, crops: bool) -> None:
        make_folder(folder)
        self.folder = folder
        self.class_names = class_names
        self.pictures = pictures
        self.crops = crops
        self._images: list[dict[str, Any]] = []
        self._detections: list[Detections] = []

    @property
    def images(self) -> int:
        """How many images and frames there were."""
        return len(self._images)

    @property
    def objects(self) -> int:
        """How many objects were found in them."""
        return sum(len(found.scores) for found in self._detections)

    def only(self, found: Instances, classes: Sequence[int]) -> Instances:
        """The detections of these classes."""
        return found[torch.isin(found.pred_classes, torch.tensor(classes))]

    def add(self, path: Path, name: PurePath, pixels: Picture, found: Instances, **facts: int) -> None:
        """Take the detections of an image; cut out its objects.

        Args:
            path: The image's or video's file.
            name: What to call its outputs by.
            pixels: `H×W×3` uint8 RGB.
            found: Its detections.
            facts: More for `images.json`, such as the number of a video's frame.
        """
        height, width = found.image_size
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": str(path), "height": height, "width": width, **facts})
        self._detections.append(pack_detections(found, number))
        if self.crops:
            self._cut(name, pixels, found)

    def draw(self, pixels: Picture, found: Instances) -> Picture:
        """The image with its detections, the best on top; small images are enlarged, so that labels can be read."""
        return draw(pixels, as_objects(found)[::-1], self.class_names, picture_width(pixels))

    def save_picture(self, name: PurePath, picture: Picture) -> None:
        """Save `pictures/NAME.jpg`."""
        save_picture(self.folder, name, picture)

    def finish(self) -> None:
        """Write both json files."""
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(self.class_names)]
        images = {"images": self._images, "annotations": [], "categories": categories}
        write_atomically(self.folder / IMAGES_NAME, json.dumps(images, ensure_ascii=False, indent=1))
        write_results(self.folder / RESULTS_NAME, self._detections, np.arange(1, len(self.class_names) + 1))

    def _cut(self, name: PurePath, pixels: Picture, found: Instances) -> None:
        height, width = found.image_size
        for number, (box, label) in enumerate(
            zip(found.pred_boxes.tensor.numpy(), found.pred_classes.tolist(), strict=True), start=1
        ):
            x1, y1 = np.maximum(np.floor(box[:2]).astype(int), 0)
            x2, y2 = np.minimum(np.ceil(box[2:]).astype(int), (width, height))
            if x1 < x2 and y1 < y2:
                # A class may be called "and/or".
                folder = re.sub(r"[^\w .-]", "_", self.class_names[label]).strip(". ") or f"class {label}"
                _save(pixels[y1:y2, x1:x2], self.folder / "crops" / folder / f"{name}_{number}.jpg")


def picture_width(pixels: Picture) -> int:
    """Pixels of an image's picture: small ones are enlarged, so that names can be read."""
    return max(pixels.shape[1], _LEAST_WIDTH)


def save_picture(folder: Path, name: PurePath, picture: Picture) -> None:
    """Save `pictures/NAME.jpg` in an output folder."""
    _save(picture, folder / "pictures" / f"{name}.jpg")


def as_objects(found: Instances) -> list[dict[str, Any]]:
    """Detections as `pvt_det.utils.visualizer.draw` takes them."""
    objects: list[dict[str, Any]] = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "score": score}
        for box, label, score in zip(
            found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores.tolist(), strict=True
        )
    ]
    if found.has("pred_masks"):
        masks = found.pred_masks
        runs = masks if isinstance(masks, RunLengthMasks) else RunLengthMasks.encode(masks)
        for shown, rle in zip(objects, runs.rles(), strict=True):
            shown["segmentation"] = rle
    return objects


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=_QUALITY)
