"""What is written of segmentations: label maps, pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from pvt_det.inference.files import picture_width, save_picture
from pvt_det.inference.segmentor import NO_CLASS, Labels
from pvt_det.utils.paths import make_folder
from pvt_det.utils.visualizer import Picture, draw_labels

LABELS_NAME = "labels"


class LabelFiles:
    """The output folder of a segmentation.

    `labels/NAME.png` has the number of each pixel's class, 255 where it is none of those asked for: training takes
    these files as `DATASETS.TRAIN_LABELS`. Pictures are `pictures/NAME.jpg`; a class always has the same colour.

    Args:
        folder: Made where absent.
        class_names: By class number.
        pictures: Whether to draw the images.

    Raises:
        ConfigError: The folder cannot be made or written in.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], *, pictures: bool) -> None:
        make_folder(folder)
        self.folder = folder
        self.class_names = class_names
        self.pictures = pictures
        self._images = 0

    @property
    def images(self) -> int:
        """How many images and frames there were."""
        return self._images

    def only(self, found: Labels, classes: Sequence[int]) -> Labels:
        """The label map with 255 for all other classes."""
        return np.where(np.isin(found, classes), found, np.uint8(NO_CLASS))

    def add(self, path: Path, name: PurePath, pixels: Picture, found: Labels, **facts: int) -> None:
        """Save the label map of an image or of a video's frame, `labels/NAME.png`."""
        file = self.folder / LABELS_NAME / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(found).save(file)
        self._images += 1

    def draw(self, pixels: Picture, found: Labels) -> Picture:
        """The image with its classes; small images are enlarged, so that names can be read."""
        return draw_labels(pixels, found, self.class_names, picture_width(pixels))

    def save_picture(self, name: PurePath, picture: Picture) -> None:
        """Save `pictures/NAME.jpg`."""
        save_picture(self.folder, name, picture)

    def finish(self) -> None:
        """Nothing: every image has files of its own."""
