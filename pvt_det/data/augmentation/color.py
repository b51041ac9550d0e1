"""Photometric augmentation: random brightness, contrast, saturation and hue."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T


class PhotometricTransform(T.Transform):
    """Change the colors of an image, and leave boxes, masks and labels unchanged.

    Each step rounds down to 8 bits, as the published code does.

    Args:
        brightness: Levels to add to every channel, on a scale of 0 to 255.
        contrast: Factor for every channel.
        contrast_first: Change the contrast before saturation and hue instead of after them.
        saturation: Factor for the saturation.
        hue: Shift of the hue in steps of 2 degrees, OpenCV's unit.
        image_format: Channel order, "RGB" or "BGR".
    """

    def __init__(
        self,
        brightness: float,
        contrast: float,
        contrast_first: bool,
        saturation: float,
        hue: int,
        image_format: str,
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: npt.NDArray[np.uint8], interp: int | None = None) -> npt.NDArray[np.uint8]:
        """Change the colors of an image.

        Args:
            img: Pixels `H×W×3`, uint8.
            interp: Ignored.

        Returns:
            Pixels `H×W×3`, uint8.
        """
        img = _map_levels(img, 1.0, self.brightness)
        if self.contrast_first:
            img = _map_levels(img, self.contrast, 0.0)
        if self.saturation != 1 or self.hue:
            img = self._change_hsv(img)
        return img if self.contrast_first else _map_levels(img, self.contrast, 0.0)

    def _change_hsv(self, img: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        to_hsv, from_hsv = (
            (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)
            if self.image_format == "RGB"
            else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
        )
        levels = np.arange(256)
        tables = np.stack([(levels + self.hue) % 180, (levels * self.saturation).clip(0, 255), levels], axis=1)
        return cv2.cvtColor(cv2.LUT(cv2.cvtColor(img, to_hsv), tables.astype(np.uint8)[None]), from_hsv)

    def apply_coords(self, coords: npt.NDArray) -> npt.NDArray:
        """Return the coordinates unchanged.

        Args:
            coords: Points `N×2` (x, y) in pixels.
        """
        return coords

    def apply_segmentation(self, segmentation: npt.NDArray) -> npt.NDArray:
        """Return the label map unchanged.

        Args:
            segmentation: Label map `H×W`.
        """
        return segmentation


def _map_levels(img: npt.NDArray[np.uint8], factor: float, shift: float) -> npt.NDArray[np.uint8]:
    if (factor, shift) == (1, 0):
        return img
    return cv2.LUT(np.ascontiguousarray(img), (np.arange(256) * factor + shift).clip(0, 255).astype(np.uint8))


class PhotometricDistortion(T.Augmentation):
    """Change brightness, contrast, saturation and hue, each with probability 1/2.

    The ranges are those of SSD (arXiv 1512.02325). Detectron2's version (in its PointRend project) draws while it is
    applied, and from Python's generator, so a sample could not be reproduced.

    Args:
        image_format: Channel order of the images, "RGB" or "BGR".
    """

    def __init__(self, image_format: str) -> None:
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: npt.NDArray) -> T.Transform:
        """Draw which properties to change, and by how much.

        Args:
            image: Pixels `H×W×3`. They do not affect the draw.
        """
        enabled = np.random.randint(2, size=4)
        brightness, contrast, saturation = np.random.uniform((-32, 0.5, 0.5), (32, 1.5, 1.5))
        return PhotometricTransform(
            brightness=float(brightness) if enabled[0] else 0.0,
            contrast=float(contrast) if enabled[1] else 1.0,
            contrast_first=bool(np.random.randint(2)),
            saturation=float(saturation) if enabled[2] else 1.0,
            hue=int(np.random.randint(-18, 18)) if enabled[3] else 0,
            image_format=self.image_format,
        )
