"""The forms in which predictors accept an image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pvt_det.data.images import from_pillow, read_image
from pvt_det.errors import DataError

Image: TypeAlias = str | os.PathLike[str] | NDArray[np.uint8] | PIL.Image.Image


@dataclass(frozen=True)
class Prepared:
    """An image that was read and resized before a predictor is called with it, for example in another process.

    Attributes:
        image: The image, to which the results refer.
        record: What the predictor's `preparation` returned for its pixels.
    """

    image: Image
    record: dict[str, Any]


_EXPECTED = "Expected an H x W x 3 uint8 array in RGB order, a Pillow image, or a file path."


def load_pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """Return the pixels of an image, `H×W×3` uint8 RGB.

    Files and Pillow images are rotated upright according to their EXIF orientation. Arrays are returned unchanged.

    Args:
        image: A file path, a Pillow image of any supported mode, or an `H×W×3` uint8 array in RGB order.
        name: Name of an array or Pillow image in messages.

    Raises:
        DataError: The image cannot be read, or has a different type, shape or dtype, or is empty.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, "RGB")
    if isinstance(image, PIL.Image.Image):
        # The messages about files start with "image".
        called = name.removeprefix("image ") if name.startswith("image ") else "from Pillow"
        return check_pixels(from_pillow(image, called), name)
    return check_pixels(image, name)


def check_pixels(image: Any, name: str) -> NDArray[np.uint8]:
    """Check that an image is an `H×W×3` uint8 array with at least one pixel, and return it.

    Args:
        image: The image to check.
        name: Name of the image in messages.

    Raises:
        DataError: The image has a different type, shape or dtype, or is empty.
    """
    if image is None:
        raise DataError(f"{name} is None, which cv2.imread returns for a file that it cannot read. {_EXPECTED}")
    if not isinstance(image, np.ndarray):
        raise DataError(f"{name} is a {type(image).__name__}. {_EXPECTED}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"{name} has shape {image.shape}. {_EXPECTED}{_fix(image)}")
    if image.size == 0:
        raise DataError(f"{name} is empty: it has shape {image.shape}. {_EXPECTED}")
    if image.dtype != np.uint8:
        nan = " and contains NaN" if image.dtype.kind == "f" and np.isnan(image).any() else ""
        raise DataError(f"{name} has dtype {image.dtype}{nan}. {_EXPECTED} Values range from 0 to 255.")
    return image


def _fix(image: NDArray[Any]) -> str:
    if image.ndim == 2:
        return " Convert a grayscale image with np.repeat(image[:, :, None], 3, axis=2)."
    if image.ndim == 3 and image.shape[2] == 4:
        return " Remove an alpha channel with image[:, :, :3]."
    if image.ndim == 4:
        return " Pass several images as a list."
    return ""
