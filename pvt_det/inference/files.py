"""What is written of detections and segmentations: COCO's results, label maps, pictures and crops."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances
from numpy.typing import NDArray
from PIL import Image

from pvt_det.evaluation.detections import Detections, pack_detections, write_results
from pvt_det.inference.segmentor import NO_CLASS, Labels
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder
from pvt_det.utils.visualizer import Picture, draw, draw_labels

RESULTS_NAME = "results.json"
IMAGES_NAME = "images.json"
LABELS_NAME = "labels"
Found = TypeVar("Found")
_QUALITY = 90
_LEAST_WIDTH = 640  # of pictures, in pixels


class OutputFiles(ABC, Generic[Found]):
    """The output folder of a prediction; pictures are `pictures/NAME.jpg`.

    Args:
        folder: Made where absent.
        class_names: By class number.
        pictures: Whether to draw the images.

    Attributes:
        images: How many images and frames there were.

    Raises:
        ConfigError: The folder cannot be made or written in.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], *, pictures: bool) -> None:
        make_folder(folder)
        self.folder = folder
        self.class_names = class_names
        self.pictures = pictures
        self.images = 0

    @abstractmethod
    def only(self, found: Found, classes: Sequence[int]) -> Found:
        """What is found, without other classes."""

    @abstractmethod
    def add(self, path: Path, name: PurePath, pixels: Picture, found: Found, **facts: int) -> None:
        """Take what is found in an image.

        Args:
            path: The image's or video's file.
            name: What to call its outputs by.
            pixels: `H×W×3` uint8 RGB.
            found: What is in it.
            facts: More about the image, such as the number of a video's frame.
        """

    @abstractmethod
    def draw(self, pixels: Picture, found: Found) -> Picture:
        """The image with what is found; small images are enlarged, so that names can be read."""

    def save_picture(self, name: PurePath, picture: Picture) -> None:
        """Save `pictures/NAME.jpg`."""
        _save(picture, self.folder / "pictures" / f"{name}.jpg")

    def finish(self) -> None:
        """Write what is written of all images together."""


class PredictionFiles(OutputFiles[Instances]):
    """The output folder of a detector's prediction.

    `results.json` has the detections in COCO's results format and `images.json` the images and categories that its
    ids mean, in COCO's annotation format. Crops are `crops/CLASS/NAME_NUMBER.jpg`.

    Args:
        folder: Made where absent.
        class_names: By class number; a category's id is its number plus 1.
        pictures: Whether to draw the images.
        crops: Whether to cut out every object.

    Raises:
        ConfigError: The folder cannot be made or written in.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], *, pictures: bool, crops: bool) -> None:
        super().__init__(folder, class_names, pictures=pictures)
        self.crops = crops
        self._images: list[dict[str, Any]] = []
        self._detections: list[Detections] = []

    @property
    def objects(self) -> int:
        """How many objects were found in them."""
        return sum(len(found.scores) for found in self._detections)

    def only(self, found: Instances, classes: Sequence[int]) -> Instances:
        """The detections of these classes."""
        return found[torch.isin(found.pred_classes, torch.tensor(classes))]

    def add(self, path: Path, name: PurePath, pixels: Picture, found: Instances, **facts: int) -> None:
        """Take the detections of an image; its facts go to `images.json`, its objects are cut out."""
        height, width = found.image_size
        self.images += 1
        self._images.append({"id": self.images, "file_name": str(path), "height": height, "width": width, **facts})
        self._detections.append(pack_detections(found, self.images))
        if self.crops:
            self._cut(name, pixels, found)

    def draw(self, pixels: Picture, found: Instances) -> Picture:
        """The image with its detections, the best on top; small images are enlarged, so that labels can be read."""
        return draw(pixels, _as_objects(found)[::-1], self.class_names, _picture_width(pixels))

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


class LabelFiles(OutputFiles[Labels]):
    """The output folder of a segmentation.

    `labels/NAME.png` has the number of each pixel's class, 255 where it is none of those asked for: training takes
    these files as `DATASETS.TRAIN_LABELS`. In pictures a class always has the same colour.
    """

    def only(self, found: Labels, classes: Sequence[int]) -> Labels:
        """The label map with 255 for all other classes."""
        return np.where(np.isin(found, classes), found, np.uint8(NO_CLASS))

    def add(self, path: Path, name: PurePath, pixels: Picture, found: Labels, **facts: int) -> None:
        """Save the label map of an image or of a video's frame, `labels/NAME.png`."""
        file = self.folder / LABELS_NAME / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(found).save(file)
        self.images += 1

    def draw(self, pixels: Picture, found: Labels) -> Picture:
        """The image with its classes; small images are enlarged, so that names can be read."""
        return draw_labels(pixels, found, self.class_names, _picture_width(pixels))


def _picture_width(pixels: Picture) -> int:
    return max(pixels.shape[1], _LEAST_WIDTH)


def _as_objects(found: Instances) -> list[dict[str, Any]]:
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
