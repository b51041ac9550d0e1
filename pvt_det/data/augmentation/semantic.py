"""Augmentations for semantic segmentation, as in the recipes of MMSegmentation."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from pvt_det.data.augmentation.color import PhotometricDistortion
from pvt_det.data.augmentation.transforms import ResizeShortSide, crop_size


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
