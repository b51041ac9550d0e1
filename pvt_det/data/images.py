"""Read image files of every supported mode as upright uint8 arrays, with clear errors for broken files."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError, features

from pvt_det.data.storage.places import image_size, read_content
from pvt_det.data.storage.references import Reference
from pvt_det.errors import DataError
from pvt_det.utils.paths import file_fault

# Larger images are refused before they are decoded. This is Pillow's own limit, 256 MiB of RGB.
MAX_PIXELS = 89_478_485
# Modes of label maps: class numbers, or indices of a palette.
LABEL_MODES = ("L", "P")
# Files with these suffixes are used where an argument is a folder of images.
IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_ORIENTATION_TAG = 274
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Other formats of Pillow are excluded because some of its readers start programs (Ghostscript for EPS).
FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "JPEG2000",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
    *(["AVIF"] if features.check("avif") else []),
)
# Last bytes of a complete file; empty if opening the file detects truncation. Files that end differently, and formats
# without an end mark, are decoded to check that they are complete.
_END_OF_JPEG = b"\xff\xd9"
_END_MARKS = {
    **dict.fromkeys(("JPEG", "JPEG2000", "MPO"), _END_OF_JPEG),
    **{"AVIF": b"", "WEBP": b"", "PNG": b"IEND\xaeB`\x82"},
}
_TAIL = 64
# A PNG may store its orientation after the pixels, within this many last bytes and behind one of these marks.
_PNG_TAIL = 2**14
_ORIENTATION_MARKS = (b"eXIf", b"XML:com.adobe.xmp")


def read_image(path: Reference, image_format: str) -> npt.NDArray[np.uint8]:
    """Read an image, and rotate it upright according to its EXIF orientation.

    16-bit grayscale is reduced to its upper 8 bits, as Pillow does with 16-bit color. An alpha channel is dropped.

    Args:
        path: Image file: a path, a URL, or a file in a folder of shards.
        image_format: Channel order: "RGB", "BGR", or "L" for grayscale.

    Returns:
        The image, `H×W×3` (`H×W×1` for "L"), uint8 in 0 … 255.

    Raises:
        DataError: The file is missing, empty, not an image, truncated or too large, or its mode is not supported.
    """
    with _open(path) as file:
        pixels = _read(path, file, "L" if image_format == "L" else "RGB")
    if image_format == "L":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def decode_image(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Decode the content of an image file as `read_image` does.

    Args:
        content: The bytes of the file.
        name: Where they come from, such as a URL, for messages.

    Returns:
        The image, `H×W×3`, uint8 in 0 … 255, RGB.

    Raises:
        DataError: The content is empty, not an image, truncated or too large, or its mode is not supported.
    """
    return _read(name, io.BytesIO(content), "RGB")


def from_pillow(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image as `read_image` converts a file: to RGB, and upright according to its EXIF orientation.

    Args:
        image: The image, of any mode that is supported in files. It may be opened but not decoded yet.
        name: What follows "image" in messages, if the image does not come from a file.

    Returns:
        The image, `H×W×3`, uint8 in 0 … 255, RGB.

    Raises:
        DataError: The image is broken or cut short, or its mode is not supported.
    """
    path = Path(getattr(image, "filename", "") or name)
    return _upright(_decode(path, image, lambda: _to_uint8(image, "RGB", path)), image)


@dataclass(frozen=True)
class StoredPixels:
    """The values that an image file stores, without conversion.

    Attributes:
        mode: Pillow's mode, such as "P" (indices of a palette), "L", "RGB" or "I;16".
        values: The pixels, `H×W` or `H×W×C`. For a palette, the indices.
        palette: Colors of the palette, `N×3` uint8 RGB. None without a palette.
    """

    mode: str
    values: npt.NDArray[Any]
    palette: npt.NDArray[np.uint8] | None


def read_stored(path: Reference) -> StoredPixels:
    """Read the values of an image file without conversion, such as the class numbers of a label map.

    Args:
        path: Image file: a path, a URL, or a file in a folder of shards.

    Returns:
        The values with their mode and palette.

    Raises:
        DataError: The file is missing, empty, not an image, truncated or too large.
    """
    with _open(path) as file:
        image = _identify_verified(path, file)
        values = _decode(path, image, lambda: np.array(image))
        colors = image.getpalette("RGB") if image.mode == "P" else None
    return StoredPixels(image.mode, values, None if colors is None else np.array(colors, np.uint8).reshape(-1, 3))


def read_labels(path: Reference) -> npt.NDArray[np.uint8]:
    """Read a label map, an image with one channel whose values are class ids.

    A palette is ignored, since it only affects display.

    Args:
        path: Image file: a path, a URL, or a file in a folder of shards.

    Returns:
        The class ids, `H×W` uint8.

    Raises:
        DataError: The file is missing, empty, not an image, truncated or too large, or it has several channels or more
            than 8 bits.
    """
    with _open(path) as file:
        image = _identify_verified(path, file)
        if image.mode not in LABEL_MODES:
            raise DataError(
                f"label map {path} has mode {image.mode!r}; expected one 8-bit channel with class ids (mode L, or P "
                "with a palette)"
            )
        return _decode(path, image, lambda: np.array(image))


def read_header(path: Reference) -> tuple[int, int]:
    """Read the width and height of an image from its header.

    The image is decoded only if the file does not end with the end mark of its format. Of an image in a shard, only the
    index is read.

    Args:
        path: Image file: a path, a URL, or a file in a folder of shards.

    Returns:
        Width and height in pixels, after EXIF rotation.

    Raises:
        DataError: The file is missing, empty, not an image, truncated or too large. Not every broken file is detected.
    """
    if (size := image_size(path)) is not None:
        return size
    with _open(path) as file:
        return _header_size(path, file)


def measure_image(content: bytes, name: str, *, decode: bool) -> tuple[int, int]:
    """Check the content of an image file, and return its size, as `read_header` or `read_image` do for a file.

    Args:
        content: The bytes of the file.
        name: Where they come from, for messages.
        decode: Whether to decode the image, which finds every fault.

    Returns:
        Width and height in pixels, after EXIF rotation.

    Raises:
        DataError: The content is empty, not an image, truncated or too large. Without `decode`, not every fault is
            detected.
    """
    if decode:
        height, width = decode_image(content, name).shape[:2]
        return width, height
    return _header_size(name, io.BytesIO(content))


def read_orientation(path: Reference) -> int:
    """Read the EXIF orientation of an image, which says how its pixels are rotated or mirrored.

    Args:
        path: Image file: a path, a URL, or a file in a folder of shards.

    Returns:
        The orientation, from 1 (upright) to 8; 1 if the file does not store a valid one.

    Raises:
        DataError: The file is missing, empty, not an image or too large, or its header is broken.
    """
    with _open(path) as file:
        image = _identify(path, file)
        return _header_orientation(image, _tail(image, file))


def check_size(path: Reference, found: tuple[int, int], expected: tuple[int, int]) -> None:
    """Check that the size of an image matches its annotation.

    Args:
        path: Image file, for the message.
        found: Width and height of the image in pixels, after EXIF rotation.
        expected: Width and height in pixels according to the annotation.

    Raises:
        DataError: The sizes differ.
    """
    if found != expected:
        raise DataError(
            f"image {path} is {found[0]}x{found[1]} (after EXIF rotation), but its annotation says "
            f"{expected[0]}x{expected[1]}: correct the annotation's width and height, or replace the image"
        )


def _read(path: Reference, file: IO[bytes], mode: str) -> npt.NDArray[np.uint8]:
    """Decode an image to mode "L" or "RGB", upright."""
    image = _identify_verified(path, file)
    return _upright(_decode(path, image, lambda: _to_uint8(image, mode, path)), image)


def _open(path: Reference) -> IO[bytes]:
    """Open a file for reading, and raise an error that names it if it cannot be read."""
    if (content := read_content(path)) is not None:
        return io.BytesIO(content)
    if fault := file_fault(path):
        raise DataError(f"image {path} {fault}")
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DataError(f"image {path} cannot be read ({error.strerror})") from error


def _header_size(path: Reference, file: IO[bytes]) -> tuple[int, int]:
    """Return width and height after EXIF rotation, and decode the image only if its end mark is missing."""
    image = _identify(path, file)
    tail = _tail(image, file)
    # For a TIFF, Pillow reports the size after rotation.
    is_transposed = image.format != "TIFF" and _header_orientation(image, tail) >= 5
    end_mark = _END_MARKS.get(image.format or "")
    width, height = image.size
    if end_mark is None or end_mark not in tail[-_TAIL:]:
        file.seek(0)
        _read(path, file, "RGB")
    return (height, width) if is_transposed else (width, height)


def _identify(path: Reference, file: IO[bytes]) -> Image.Image:
    """Read the header, and refuse decompression bombs."""
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(16)
        fault = (
            f"not an image (it starts with {start!r}; supported: {', '.join(FORMATS)})" if start else "empty (0 bytes)"
        )
        raise DataError(f"image {path} is {fault}: replace it") from error
    except Image.DecompressionBombError as error:
        size = str(error).partition(" exceeds")[0]
        raise DataError(f"image {path} is too large ({size}); expected at most {MAX_PIXELS:,} pixels") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise DataError(f"image {path} has a broken header ({error}): replace it") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"image {path} is too large ({width}x{height}); expected at most {MAX_PIXELS:,} pixels")
    return image


def _identify_verified(path: Reference, file: IO[bytes]) -> Image.Image:
    """Read the header and verify a PNG's checksums, which Pillow does not do while decoding."""
    image = _identify(path, file)
    if image.format != "PNG":
        return image
    try:
        image.verify()
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        raise DataError(f"image {path} is broken or cut short ({error}): replace it") from error
    file.seek(0)
    return _identify(path, file)


def _decode(path: Reference, image: Image.Image, convert: Callable[[], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Decode and convert an image, and turn the various errors for a broken file into `DataError`."""
    try:
        image.load()
        return convert()
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, MemoryError) as error:
        raise DataError(f"image {path} is broken or cut short ({error}): replace it") from error


def _tail(image: Image.Image, file: IO[bytes]) -> bytes:
    """Return the last bytes of the file without changing its position."""
    position = file.tell()
    length = _PNG_TAIL if image.format == "PNG" else _TAIL
    file.seek(-min(length, file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read()
    file.seek(position)
    return tail


def _header_orientation(image: Image.Image, tail: bytes) -> int:
    """Return the EXIF orientation without decoding the image, where possible."""
    # PngImageFile.getexif() decodes the image to find chunks after the pixels. Chunks before them are already loaded.
    if image.format == "PNG" and not any(mark in tail for mark in _ORIENTATION_MARKS):
        return _orientation(lambda: Image.Image.getexif(image))
    return _orientation(image.getexif)


def _orientation(read: Callable[[], Image.Exif]) -> int:
    """Return the EXIF orientation, or 1 if it is missing or invalid."""
    try:
        found = int(read().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block can raise almost any error, but the image is still usable
        return 1
    return found if found in _TRANSPOSE else 1


def _upright(pixels: npt.NDArray[np.uint8], image: Image.Image) -> npt.NDArray[np.uint8]:
    """Rotate the pixels of a decoded image according to its EXIF orientation."""
    # Read after decoding, because a PNG may store it after its pixels, and Pillow rotates a TIFF while decoding.
    method = _TRANSPOSE.get(_orientation(image.getexif))
    return pixels if method is None else np.array(Image.fromarray(pixels).transpose(method))


def _to_uint8(image: Image.Image, mode: str, path: Reference) -> npt.NDArray[np.uint8]:
    """Convert a decoded image to uint8 in mode "L" or "RGB"."""
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return gray if mode == "L" else np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colors, without Pillow's warning
    if image.mode in ("I", "F"):
        raise DataError(f"image {path} has 32-bit pixels (mode {image.mode}) of unknown range: save it with 8 bits")
    # Pillow copies the image even if it already has the mode.
    return np.array(image if image.mode == mode else image.convert(mode))
