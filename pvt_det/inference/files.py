"""Write detections and segmentations: COCO results, label maps, drawings and crops."""

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
from pvt_det.run_folder import DETECTIONS_NAME, IMAGES_NAME, PREDICTION, require_kind
from pvt_det.structures.masks import RunLengthMasks
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder
from pvt_det.utils.visualizer import Picture, draw, draw_labels

LABELS_NAME = "labels"
Prediction = TypeVar("Prediction")
_JPEG_QUALITY = 90
_MIN_WIDTH = 640  # of drawings, in pixels


class OutputFiles(ABC, Generic[Prediction]):
    """The output folder of a prediction. Drawings are saved as `pictures/NAME.jpg`.

    Args:
        folder: The folder to write to. It is created if it does not exist.
        class_names: Class names, by class index.
        pictures: Whether to draw the predictions.

    Attributes:
        images: Number of images and frames added so far.

    Raises:
        ConfigError: The folder cannot be created or written, or belongs to a run or an evaluation.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], *, pictures: bool) -> None:
        require_kind(folder, PREDICTION)
        make_folder(folder)
        self.folder = folder
        self.class_names = class_names
        self.pictures = pictures
        self.images = 0

    @abstractmethod
    def keep_classes(self, prediction: Prediction, classes: Sequence[int]) -> Prediction:
        """Remove all other classes from a prediction.

        Args:
            prediction: The prediction for an image.
            classes: Indices of the classes to keep.
        """

    @abstractmethod
    def add(self, path: Path, name: PurePath, pixels: Picture, prediction: Prediction, **extra: int) -> None:
        """Add the prediction for an image.

        Args:
            path: File of the image or video.
            name: Name of the output files, a relative path without suffix.
            pixels: `H×W×3` uint8 RGB image.
            prediction: The prediction for the image.
            **extra: Additional facts about the image, such as `frame`, the frame number in a video.
        """

    @abstractmethod
    def draw(self, pixels: Picture, prediction: Prediction) -> Picture:
        """Draw a prediction on its image. Small images are enlarged to keep the labels readable.

        Args:
            pixels: `H×W×3` uint8 RGB image.
            prediction: The prediction for the image.
        """

    def save_picture(self, name: PurePath, picture: Picture) -> None:
        """Save a drawing as `pictures/NAME.jpg`.

        Args:
            name: Name of the file, a relative path without suffix.
            picture: The drawing, `H×W×3` uint8 RGB.
        """
        _save(picture, self.folder / "pictures" / f"{name}.jpg")

    def finish(self) -> None:
        """Write the files that cover all images."""


class PredictionFiles(OutputFiles[Instances]):
    """The output folder of a detector's prediction.

    `detections.json` contains the detections in COCO's results format. `images.json` contains the images and categories
    that the ids refer to, in COCO's annotation format. Crops are saved as `crops/CLASS/NAME_NUMBER.jpg`.

    Args:
        folder: The folder to write to. It is created if it does not exist.
        class_names: Class names, by class index. The category id is the class index plus 1.
        pictures: Whether to draw the detections.
        crops: Whether to save a crop of every object.

    Raises:
        ConfigError: The folder cannot be created or written, or belongs to a run or an evaluation.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], *, pictures: bool, crops: bool) -> None:
        super().__init__(folder, class_names, pictures=pictures)
        self.crops = crops
        self._images: list[dict[str, Any]] = []
        self._detections: list[Detections] = []

    @property
    def objects(self) -> int:
        """Number of objects found so far."""
        return sum(len(detections.scores) for detections in self._detections)

    def keep_classes(self, prediction: Instances, classes: Sequence[int]) -> Instances:
        """Return the detections of some classes.

        Args:
            prediction: The detections in an image.
            classes: Indices of the classes to keep.
        """
        return prediction[torch.isin(prediction.pred_classes, torch.tensor(classes))]

    def add(self, path: Path, name: PurePath, pixels: Picture, prediction: Instances, **extra: int) -> None:
        """Add the detections in an image, and save crops of them if enabled.

        Args:
            path: File of the image or video.
            name: Name of the output files, a relative path without suffix.
            pixels: `H×W×3` uint8 RGB image.
            prediction: The detections in the image.
            **extra: Additional facts for `images.json`, such as `frame`, the frame number in a video.
        """
        height, width = prediction.image_size
        self.images += 1
        self._images.append({"id": self.images, "file_name": str(path), "height": height, "width": width, **extra})
        self._detections.append(pack_detections(prediction, self.images))
        if self.crops:
            self._save_crops(name, pixels, prediction)

    def draw(self, pixels: Picture, prediction: Instances) -> Picture:
        """Draw detections on their image, the highest score on top. Small images are enlarged.

        Args:
            pixels: `H×W×3` uint8 RGB image.
            prediction: The detections in the image.
        """
        return draw(pixels, _as_objects(prediction)[::-1], self.class_names, _drawing_width(pixels))

    def finish(self) -> None:
        """Write `detections.json` and `images.json`, whose `info` says what the folder contains."""
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(self.class_names)]
        info = {"kind": PREDICTION, "detections": DETECTIONS_NAME}
        images = {"info": info, "images": self._images, "annotations": [], "categories": categories}
        write_atomically(self.folder / IMAGES_NAME, json.dumps(images, ensure_ascii=False, indent=1))
        write_results(self.folder / DETECTIONS_NAME, self._detections, np.arange(1, len(self.class_names) + 1))

    def _save_crops(self, name: PurePath, pixels: Picture, prediction: Instances) -> None:
        height, width = prediction.image_size
        for number, (box, label) in enumerate(
            zip(prediction.pred_boxes.tensor.numpy(), prediction.pred_classes.tolist(), strict=True), start=1
        ):
            x1, y1 = np.maximum(np.floor(box[:2]).astype(int), 0)
            x2, y2 = np.minimum(np.ceil(box[2:]).astype(int), (width, height))
            if x1 < x2 and y1 < y2:
                # Class names may contain characters such as "/".
                folder = re.sub(r"[^\w .-]", "_", self.class_names[label]).strip(". ") or f"class {label}"
                _save(pixels[y1:y2, x1:x2], self.folder / "crops" / folder / f"{name}_{number}.jpg")


class LabelFiles(OutputFiles[Labels]):
    """The output folder of a segmentation.

    `labels/NAME.png` contains the class index of each pixel, or 255 for classes that are not kept. Training accepts
    these files as `DATASETS.TRAIN_LABELS`. A class has the same color in all drawings.
    """

    def keep_classes(self, prediction: Labels, classes: Sequence[int]) -> Labels:
        """Set the pixels of all other classes to 255.

        Args:
            prediction: `H×W` label map.
            classes: Indices of the classes to keep.
        """
        return np.where(np.isin(prediction, classes), prediction, np.uint8(NO_CLASS))

    def add(self, path: Path, name: PurePath, pixels: Picture, prediction: Labels, **extra: int) -> None:
        """Save a label map as `labels/NAME.png`.

        Args:
            path: File of the image or video.
            name: Name of the output files, a relative path without suffix.
            pixels: `H×W×3` uint8 RGB image.
            prediction: `H×W` label map of the image.
            **extra: Additional facts about the image. They are not saved.
        """
        file = self.folder / LABELS_NAME / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(prediction).save(file)
        self.images += 1

    def draw(self, pixels: Picture, prediction: Labels) -> Picture:
        """Draw a label map on its image. Small images are enlarged to keep the labels readable.

        Args:
            pixels: `H×W×3` uint8 RGB image.
            prediction: `H×W` label map of the image.
        """
        return draw_labels(pixels, prediction, self.class_names, _drawing_width(pixels))


def _drawing_width(pixels: Picture) -> int:
    return max(pixels.shape[1], _MIN_WIDTH)


def _as_objects(detections: Instances) -> list[dict[str, Any]]:
    """Convert detections to the objects that `pvt_det.utils.visualizer.draw` expects."""
    objects: list[dict[str, Any]] = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "score": score}
        for box, label, score in zip(
            detections.pred_boxes.tensor.tolist(),
            detections.pred_classes.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]
    if detections.has("pred_masks"):
        masks = detections.pred_masks
        encoded = masks if isinstance(masks, RunLengthMasks) else RunLengthMasks.encode(masks)
        for obj, rle in zip(objects, encoded.rles(), strict=True):
            obj["segmentation"] = rle
    return objects


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=_JPEG_QUALITY)
