"""Random changes of colour."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.data import transforms as T


class PhotometricTransform(T.Transform):
    """Change the colours of `H×W×3` uint8 pixels; boxes, masks and labels stay.

    Each step rounds down to 8 bits, as the published code does.
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
        """Make the transform.

        Args:
            brightness: grey levels to add.
            contrast: factor of all levels.
            contrast_first: scale before, not after, saturation and hue change.
            saturation: factor of the saturation.
            hue: degrees to turn the hue by, divided by 2 as in OpenCV.
            image_format: "RGB" or "BGR".
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: npt.NDArray[np.uint8], interp: int | None = None) -> npt.NDArray[np.uint8]:
        """Change the colours."""
        img = _map_levels(img, 1.0, self.brightness)
        if self.contrast_first:
            img = _map_levels(img, self.contrast, 0.0)
        if self.saturation != 1 or self.hue:
            img = self._turn(img)
        return img if self.contrast_first else _map_levels(img, self.contrast, 0.0)

    def _turn(self, img: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        forth, back = (
            (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB)
            if self.image_format == "RGB"
            else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
        )
        levels = np.arange(256)
        tables = np.stack([(levels + self.hue) % 180, (levels * self.saturation).clip(0, 255), levels], axis=1)
        return cv2.cvtColor(cv2.LUT(cv2.cvtColor(img, forth), tables.astype(np.uint8)[None]), back)

    def apply_coords(self, coords: npt.NDArray) -> npt.NDArray:
        """Give the coordinates back."""
        return coords

    def apply_segmentation(self, segmentation: npt.NDArray) -> npt.NDArray:
        """Give the labels back."""
        return segmentation


def _map_levels(img: npt.NDArray[np.uint8], factor: float, shift: float) -> npt.NDArray[np.uint8]:
    if (factor, shift) == (1, 0):
        return img
    return cv2.LUT(np.ascontiguousarray(img), (np.arange(256) * factor + shift).clip(0, 255).astype(np.uint8))


class PhotometricDistortion(T.Augmentation):
    """Change brightness, contrast, saturation and hue, each with probability 1/2 (SSD, arXiv 1512.02325).

    Detectron2's own (in its PointRend project) draws when it is applied, and from Python's generator, so that a sample
    could not be replayed.
    """

    def __init__(self, image_format: str) -> None:
        """Make the augmentation for "RGB" or "BGR" images."""
        super().__init__()
        self.image_format = image_format

    def get_transform(self, image: npt.NDArray) -> T.Transform:
        """Draw the changes."""
        asked = np.random.randint(2, size=4)
        brightness, contrast, saturation = np.random.uniform((-32, 0.5, 0.5), (32, 1.5, 1.5))
        return PhotometricTransform(
            brightness=float(brightness) if asked[0] else 0.0,
            contrast=float(contrast) if asked[1] else 1.0,
            contrast_first=bool(np.random.randint(2)),
            saturation=float(saturation) if asked[2] else 1.0,
            hue=int(np.random.randint(-18, 18)) if asked[3] else 0,
            image_format=self.image_format,
        )
