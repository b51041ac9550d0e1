"""Augmentations for semantic segmentation, as in the recipes of MMSegmentation."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from pvt_det.data.transforms import ResizeShortSide, crop_size


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


class PadTransform(T.Transform):
    """Add rows below and columns to the right, `bottom` and `right` many, of one colour and label."""

    def __init__(self, bottom: int, right: int, colour: tuple[int, ...], label: int) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: npt.NDArray, interp: int | None = None) -> npt.NDArray:
        """Pad `H×W×C` pixels."""
        return cv2.copyMakeBorder(img, 0, self.bottom, 0, self.right, cv2.BORDER_CONSTANT, value=self.colour)

    def apply_segmentation(self, segmentation: npt.NDArray) -> npt.NDArray:
        """Pad `H×W` labels."""
        return np.pad(segmentation, ((0, self.bottom), (0, self.right)), constant_values=self.label)

    def apply_coords(self, coords: npt.NDArray) -> npt.NDArray:
        """Give the coordinates back."""
        return coords


class PadToSize(T.Augmentation):
    """Pad images that are smaller than `size` (height, width), so that all of a batch are alike."""

    def __init__(self, size: Sequence[float], colour: Sequence[float], label: int) -> None:
        """Make the augmentation; `colour` is rounded, `label` is what padded pixels get."""
        super().__init__()
        self.size = tuple(int(side) for side in size)
        self.colour = tuple(round(value) for value in colour)
        self.label = label

    def get_transform(self, image: npt.NDArray) -> T.Transform:
        """Fit the padding to this image."""
        bottom, right = (max(0, side - there) for side, there in zip(self.size, image.shape[:2], strict=True))
        return PadTransform(bottom, right, self.colour, self.label) if bottom or right else T.NoOpTransform()


def build_semantic_augmentations(cfg: CfgNode, *, is_train: bool) -> list[T.Augmentation]:
    """Resize, crop, flip, change colours and pad, in MMSegmentation's order; for test images resize only.

    A detector's images are cropped before they are resized; here the crop is the last size that training sees.
    """
    size, backend = cfg.INPUT, cfg.INPUT.RESIZE_BACKEND
    if not is_train:
        divisor = size.SIZE_DIVISOR_TEST
        return [ResizeShortSide((size.MIN_SIZE_TEST,), size.MAX_SIZE_TEST, "choice", backend, divisor=divisor)]
    augmentations: list[T.Augmentation] = [
        ResizeShortSide(
            size.MIN_SIZE_TRAIN,
            size.MAX_SIZE_TRAIN,
            size.MIN_SIZE_TRAIN_SAMPLING,
            backend,
            scale_range=size.SCALE_RANGE,
        )
    ]
    ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if size.CROP.ENABLED:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                size.CROP.TYPE, crop_size(cfg), size.CROP.SINGLE_CATEGORY_MAX_AREA, ignore
            )
        )
    if size.RANDOM_FLIP != "none":
        horizontal = size.RANDOM_FLIP == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=horizontal, vertical=not horizontal))
    if size.COLOR_AUG_SSD:
        augmentations.append(PhotometricDistortion(size.FORMAT))
    if size.CROP.ENABLED and size.CROP.TYPE == "absolute":
        augmentations.append(PadToSize(crop_size(cfg), cfg.MODEL.PIXEL_MEAN, ignore))
    return augmentations
