"""Augmentations for semantic segmentation, as in MMSegmentation's recipes."""

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
    """Pad images and label maps at the bottom and on the right.

    Args:
        bottom: Number of rows to add.
        right: Number of columns to add.
        color: Value of padded image pixels, from 0 to 255 per channel.
        label: Value of padded label map pixels.
    """

    def __init__(self, bottom: int, right: int, color: tuple[int, ...], label: int) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: npt.NDArray, interp: int | None = None) -> npt.NDArray:
        """Pad an image.

        Args:
            img: Pixels `H×W×C`.
            interp: Ignored.

        Returns:
            Pixels `(H + bottom)×(W + right)×C`.
        """
        return cv2.copyMakeBorder(img, 0, self.bottom, 0, self.right, cv2.BORDER_CONSTANT, value=self.color)

    def apply_segmentation(self, segmentation: npt.NDArray) -> npt.NDArray:
        """Pad a label map.

        Args:
            segmentation: Label map `H×W`.

        Returns:
            Label map `(H + bottom)×(W + right)`.
        """
        return np.pad(segmentation, ((0, self.bottom), (0, self.right)), constant_values=self.label)

    def apply_coords(self, coords: npt.NDArray) -> npt.NDArray:
        """Return the coordinates unchanged.

        Args:
            coords: Points `N×2` (x, y) in pixels.
        """
        return coords


class PadToSize(T.Augmentation):
    """Pad images that are smaller than a fixed size, so that all images of a batch have that size.

    Args:
        size: Minimum height and width in pixels.
        color: Value of padded image pixels, from 0 to 255 per channel. Values are rounded.
        label: Value of padded label map pixels.
    """

    def __init__(self, size: Sequence[float], color: Sequence[float], label: int) -> None:
        super().__init__()
        self.size = tuple(int(side) for side in size)
        self.color = tuple(round(value) for value in color)
        self.label = label

    def get_transform(self, image: npt.NDArray) -> T.Transform:
        """Compute the padding that an image needs.

        Args:
            image: Pixels `H×W×C`.
        """
        bottom, right = (max(0, target - side) for target, side in zip(self.size, image.shape[:2], strict=True))
        return PadTransform(bottom, right, self.color, self.label) if bottom or right else T.NoOpTransform()


def build_semantic_augmentations(cfg: CfgNode, *, is_train: bool) -> list[T.Augmentation]:
    """Build the augmentations of a segmentor, in MMSegmentation's order.

    Training images are resized, cropped, flipped, recolored and padded. Test images are only resized. Detectors crop
    before they resize; here the crop comes later, so its size is the size of the training images.

    Args:
        cfg: Config whose `INPUT` and `MODEL.SEM_SEG_HEAD.IGNORE_VALUE` are read.
        is_train: Build the augmentations of training images instead of test images.
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
