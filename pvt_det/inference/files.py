"""Write detections and segmentations: COCO results, label maps, drawings and crops."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image

from pvt_det.data.images import read_image
from pvt_det.evaluation.detections import as_json, pack_detections
from pvt_det.inference.formats import DetectionFormat
from pvt_det.inference.journal import Journal
from pvt_det.inference.predictions import (
    class_shares,
    count_classes,
    describe_counts,
    describe_shares,
    draw_detections,
    draw_label_map,
    write_picture,
)
from pvt_det.inference.segmentor import NO_CLASS, Labels
from pvt_det.inference.sources import Source
from pvt_det.inference.tables import write_detections, write_images
from pvt_det.run_folder import PREDICTION, require_kind
from pvt_det.utils.paths import make_folder
from pvt_det.utils.visualizer import Picture

LABELS_NAME, PICTURES_NAME, VIDEOS_NAME = "labels", "pictures", "videos"
Prediction = TypeVar("Prediction")


@dataclass(frozen=True)
class Written:
    """What is known after the prediction for an image was written.

    Attributes:
        detections: The detections or segments as JSON values, for the journal.
        description: What was found, in a few words.
    """

    detections: list[dict[str, Any]]
    description: str


class OutputFiles(ABC, Generic[Prediction]):
    """The output folder of a prediction. Drawings are saved as `pictures/NAME.jpg`.

    `images.json` lists the images with their names in the output folder, and the classes, in COCO's annotation format.

    Args:
        journal: The predictions so far, in the folder to write to. The folder is created if it does not exist.
        class_names: Class names, by class index.
        pictures: Whether to draw the predictions.
        settings: What else the predictions depend on, as JSON values. A run can only be resumed with the same.
        folder: Folder for all but the tables, `images.json` and so on. None takes that of the journal.

    Attributes:
        folder: The folder for all but the tables.

    Raises:
        ConfigError: The folder cannot be created or written, or belongs to a run or an evaluation.
    """

    _first_category_id = 1

    def __init__(
        self,
        journal: Journal,
        class_names: tuple[str, ...],
        *,
        pictures: bool,
        settings: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.folder = journal.path.parent if folder is None else folder
        require_kind(self.folder, PREDICTION)
        make_folder(self.folder)
        self.journal = journal
        self.class_names = class_names
        self.pictures = pictures
        self.settings = {"kind of model": type(self).__name__, "--no-pictures": not pictures, **(settings or {})}

    def __getstate__(self) -> dict[str, Any]:
        # Other processes save predictions, but do not add to the journal.
        return {**self.__dict__, "journal": None}

    @abstractmethod
    def keep_classes(self, prediction: Prediction, classes: Sequence[int]) -> Prediction:
        """Remove all other classes from a prediction.

        Args:
            prediction: The prediction for an image.
            classes: Indices of the classes to keep.
        """

    @abstractmethod
    def save(
        self, source: Source, pixels: Picture | None, prediction: Prediction, frame: int | None = None
    ) -> list[dict[str, Any]]:
        """Save the prediction for an image, except for its drawing.

        Args:
            source: The image, or the video of the frame.
            pixels: `H×W×3` uint8 RGB image. None for a file if `needs_pixels` is False.
            prediction: The prediction for the image.
            frame: Number of the frame in its video, from 1. None for an image.

        Returns:
            What to add to the journal: the detections or segments as JSON values.
        """

    @abstractmethod
    def draw(self, pixels: Picture, prediction: Prediction, *, in_video: bool = False) -> Picture:
        """Draw a prediction on its image. Small images are enlarged to keep the labels readable.

        Args:
            pixels: `H×W×3` uint8 RGB image.
            prediction: The prediction for the image.
            in_video: Whether the image is a frame of a video, in which colors must not flicker.
        """

    @abstractmethod
    def describe(self, prediction: Prediction) -> str:
        """Describe a prediction in a few words, such as "4 cat, 1 dog".

        Args:
            prediction: The prediction for an image.
        """

    def add(
        self, source: Source, pixels: Picture, prediction: Prediction, frame: int | None = None, time: float = 0.0
    ) -> None:
        """Save the prediction for an image, except for its drawing, and add it to the journal.

        Args:
            source: The image, or the video of the frame.
            pixels: `H×W×3` uint8 RGB image.
            prediction: The prediction for the image.
            frame: Number of the frame in its video, from 1. None for an image.
            time: Seconds from the first frame of the video to this one.
        """
        size = (pixels.shape[0], pixels.shape[1])
        self.journal.add(source, size, self.save(source, pixels, prediction, frame), frame, time)

    @property
    def needs_pixels(self) -> bool:
        """Whether the pixels of images are needed to write their predictions."""
        return self.pictures

    def write(self, source: Source, image: Path | Picture, prediction: Prediction) -> Written:
        """Save the prediction for an image and its drawing, `pictures/NAME.jpg`. The journal is not changed.

        Args:
            source: The image.
            image: The file, or the pixels `H×W×3` uint8 RGB.
            prediction: The prediction for the image.

        Returns:
            What to add to the journal, and to print.

        Raises:
            DataError: The file cannot be read any more.
            OSError: A file cannot be written.
        """
        pixels = read_image(image, "RGB") if isinstance(image, Path) and self.needs_pixels else image
        detections = self.save(source, None if isinstance(pixels, Path) else pixels, prediction)
        if self.pictures and not isinstance(pixels, Path):
            write_picture(self.draw(pixels, prediction), self.folder / PICTURES_NAME / f"{source.name}.jpg")
        return Written(detections, self.describe(prediction))

    def table(self, name: str) -> Path:
        """Return the path of a table, such as `images.json`.

        Args:
            name: Name of the file.
        """
        return self.journal.path.with_name(name)

    def drawn(self, sources: Sequence[Source]) -> str:
        """Return the folders of the drawings for a message, each after a comma; "" if there are none.

        Args:
            sources: The images and videos.
        """
        if not self.pictures or not self.journal.images:
            return ""
        names = {False: PICTURES_NAME, True: VIDEOS_NAME}
        return "".join(f", {self.folder / names[is_video]}" for is_video in sorted({s.is_video for s in sources}))

    def finish(self) -> None:
        """Write the files that cover all images, and remove the journal."""
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, self._first_category_id)]
        write_images(self.journal.path.parent, self.journal.images_so_far(), categories)
        self.journal.remove()


class PredictionFiles(OutputFiles[Instances]):
    """The output folder of a detector's prediction.

    `detections.json` contains the detections in COCO's results format. Its ids refer to `images.json`. Detections of a
    tracked object have a `track_id`. Crops are saved as `crops/CLASS/NAME_NUMBER.jpg`.

    Args:
        journal: The predictions so far, in the folder to write to. The folder is created if it does not exist.
        class_names: Class names, by class index. The category id is the class index plus 1.
        pictures: Whether to draw the detections.
        crops: Whether to save a crop of every object.
        formats: Formats of other tools, in which the detections are written too.
        settings: What else the predictions depend on, as JSON values. A run can only be resumed with the same.
        folder: Folder for all but the tables, `images.json` and so on. None takes that of the journal.

    Raises:
        ConfigError: The folder cannot be created or written, or belongs to a run or an evaluation.
    """

    def __init__(
        self,
        journal: Journal,
        class_names: tuple[str, ...],
        *,
        pictures: bool,
        crops: bool,
        formats: Sequence[DetectionFormat] = (),
        settings: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        settings = {"--crops": crops, **(settings or {})}
        super().__init__(journal, class_names, pictures=pictures, settings=settings, folder=folder)
        self.crops = crops
        self.formats = formats
        self._category_ids = np.arange(1, len(class_names) + 1)
        self._class_folders = _class_folders(class_names)

    def keep_classes(self, prediction: Instances, classes: Sequence[int]) -> Instances:
        """Return the detections of some classes.

        Args:
            prediction: The detections in an image.
            classes: Indices of the classes to keep.
        """
        return prediction[torch.isin(prediction.pred_classes, torch.tensor(classes))]

    @property
    def needs_pixels(self) -> bool:
        """Whether the pixels of images are needed to write their predictions."""
        return self.pictures or self.crops

    def save(
        self, source: Source, pixels: Picture | None, prediction: Instances, frame: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the detections in an image, and save crops of them if enabled.

        Args:
            source: The image, or the video of the frame.
            pixels: `H×W×3` uint8 RGB image. None for a file if `needs_pixels` is False.
            prediction: The detections in the image.
            frame: Number of the frame in its video, from 1. None for an image.

        Returns:
            The detections in COCO's results format, without `image_id`.

        Raises:
            NumericError: A box or score is NaN or infinite.
        """
        detections = as_json(pack_detections(prediction, 1, source.shown), self._category_ids)
        if prediction.has("track_ids"):
            for detection, track_id in zip(detections, prediction.track_ids.tolist(), strict=True):
                detection.update({"track_id": track_id} if track_id > 0 else {})
        if pixels is not None and not (frame is None and isinstance(source.path, Path)):
            for each in self.formats:
                each.add(self.folder, source, pixels, frame)
        if pixels is not None and self.crops:
            self._save_crops(str(source.output_name(frame)), pixels, prediction)
        return detections

    def draw(self, pixels: Picture, prediction: Instances, *, in_video: bool = False) -> Picture:
        """Draw at most 300 detections on their image, the highest score on top. Small images are enlarged.

        Args:
            pixels: `H×W×3` uint8 RGB image.
            prediction: The detections in the image.
            in_video: Whether the image is a frame of a video. Then an object has the color of its class.
        """
        return draw_detections(pixels, prediction, self.class_names, distinct=not in_video)

    def describe(self, prediction: Instances) -> str:
        """Return the number of objects of each class, such as "4 cat, 1 dog", or "no objects".

        Args:
            prediction: The detections in an image.
        """
        return describe_counts(count_classes(prediction, self.class_names))

    def finish(self) -> None:
        """Write `detections.json`, `images.json` and the other formats, and remove the journal."""
        write_detections(self.journal.path.parent, self.journal.images_so_far())
        for each in self.formats:
            each.write(self.folder, self.journal.images_so_far(), self.class_names)
        super().finish()

    def _save_crops(self, name: str, pixels: Picture, prediction: Instances) -> None:
        height, width = prediction.image_size
        for number, (box, label) in enumerate(
            zip(prediction.pred_boxes.tensor.numpy(), prediction.pred_classes.tolist(), strict=True), start=1
        ):
            x1, y1 = np.maximum(np.floor(box[:2]).astype(int), 0)
            x2, y2 = np.minimum(np.ceil(box[2:]).astype(int), (width, height))
            if x1 < x2 and y1 < y2:
                folder = self.folder / "crops" / self._class_folders[label]
                write_picture(pixels[y1:y2, x1:x2], folder / f"{name}_{number}.jpg")


class LabelFiles(OutputFiles[Labels]):
    """The output folder of a segmentation.

    `labels/NAME.png` contains the class index of each pixel, or 255 for classes that are not kept. Training accepts
    these files as `DATASETS.TRAIN_LABELS`. A class has the same color in all drawings.
    """

    _first_category_id = 0

    def keep_classes(self, prediction: Labels, classes: Sequence[int]) -> Labels:
        """Set the pixels of all other classes to 255.

        Args:
            prediction: `H×W` label map.
            classes: Indices of the classes to keep.
        """
        return np.where(np.isin(prediction, classes), prediction, np.uint8(NO_CLASS))

    def save(
        self, source: Source, pixels: Picture | None, prediction: Labels, frame: int | None = None
    ) -> list[dict[str, Any]]:
        """Save a label map as `labels/NAME.png`.

        Args:
            source: The image, or the video of the frame.
            pixels: Not used.
            prediction: `H×W` label map of the image.
            frame: Number of the frame in its video, from 1. None for an image.

        Returns:
            An empty list.
        """
        file = self.folder / LABELS_NAME / f"{source.output_name(frame)}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(prediction).save(file)
        return []

    def draw(self, pixels: Picture, prediction: Labels, *, in_video: bool = False) -> Picture:
        """Draw a label map on its image. Small images are enlarged to keep the labels readable.

        Args:
            pixels: `H×W×3` uint8 RGB image.
            prediction: `H×W` label map of the image.
            in_video: Whether the image is a frame of a video. A class has the same color in any case.
        """
        return draw_label_map(pixels, prediction, self.class_names)

    def describe(self, prediction: Labels) -> str:
        """Return the shares of the largest classes, such as "sky 45%; road 30%".

        Args:
            prediction: `H×W` label map of an image.
        """
        return describe_shares(class_shares(prediction, self.class_names))


def _class_folders(class_names: Sequence[str]) -> list[str]:
    """Return a different folder name for each class. Class names may contain characters such as "/"."""
    folders: dict[str, str] = {}
    for label, name in enumerate(class_names):
        base = re.sub(r"[^\w .-]", "_", name).strip(". ") or f"class {label}"
        folder, number = base, 1
        while folder.casefold() in folders:
            number += 1
            folder = f"{base}_{number}"
        folders[folder.casefold()] = folder
    return list(folders.values())
