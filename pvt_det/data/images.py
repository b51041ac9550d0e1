"""Reading image files: right pixels for every mode, and one clear error for every way a file can be broken."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError, features

from pvt_det.errors import DataError
from pvt_det.utils.paths import file_fault

# Above this an image is refused before it is decoded: Pillow's own bound, 256 MiB of RGB.
MAX_PIXELS = 89_478_485
# Endings of the files that are taken for images where a folder stands for those in it.
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
# No others of Pillow's: some of its readers start programs (Ghostscript, for EPS).
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
# The last bytes of a complete file, "" where opening it tells; one that ends otherwise, or is of a format without such
# a mark, is decoded to find out whether it is whole.
_END_OF_JPEG = b"\xff\xd9"
_END_MARKS = {
    **dict.fromkeys(("JPEG", "JPEG2000", "MPO"), _END_OF_JPEG),
    **{"AVIF": b"", "WEBP": b"", "PNG": b"IEND\xaeB`\x82"},
}
_TAIL = 64
# Where a PNG may tell behind its pixels how they are turned, in one of these ways.
_PNG_TAIL = 2**14
_ORIENTATION_MARKS = (b"eXIf", b"XML:com.adobe.xmp")


def read_image(path: str | os.PathLike[str], image_format: str) -> npt.NDArray[np.uint8]:
    """Read an image, turned upright by its EXIF tag.

    16-bit gray keeps its upper 8 bits, as Pillow does with 16-bit colour; an alpha channel is dropped.

    Args:
        path: the image file.
        image_format: "RGB", "BGR" or "L".

    Returns:
        `H×W×3` (`H×W×1` for "L"), uint8, 0 … 255.

    Raises:
        DataError: the file is missing, empty, no image, truncated, too large, or of an unusable mode.
    """
    path = Path(path)
    with _open(path) as file:
        image = _identify_sound(path, file)
        pixels = _decode(path, image, lambda: _to_uint8(image, "L" if image_format == "L" else "RGB", path))
        # Asked for after decoding: a PNG may tell it behind its pixels, and Pillow has turned a TIFF by then.
        method = _TRANSPOSE.get(_orientation(image.getexif))
    if method is not None:
        pixels = np.array(Image.fromarray(pixels).transpose(method))
    if image_format == "L":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if image_format == "BGR" else pixels


def read_labels(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read a label map, `H×W`: an image of one channel whose values are class numbers; a palette is for display only.

    Raises:
        DataError: as `read_image`, or the image has several channels or more than 8 bits.
    """
    path = Path(path)
    with _open(path) as file:
        image = _identify_sound(path, file)
        if image.mode not in ("L", "P"):
            raise DataError(
                f"label map {path} is of mode {image.mode!r}; expected one channel of 8 bits with class numbers "
                "(mode L, or P with a palette)"
            )
        return _decode(path, image, lambda: np.array(image))


def read_header(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels after EXIF rotation, read from the header.

    The pixels are decoded only where the file does not end as complete files of its format do.

    Raises:
        DataError: as `read_image`, as far as header and end of the file tell.
    """
    path = Path(path)
    with _open(path) as file:
        image = _identify(path, file)
        tail = _tail(image, file)
        # Pillow tells a TIFF's size as it is when turned.
        turned = image.format != "TIFF" and _early_orientation(image, tail) >= 5
        end_mark = _END_MARKS.get(image.format or "")
        complete = end_mark is not None and end_mark in tail[-_TAIL:]
        width, height = image.size
    if not complete:
        read_image(path, "RGB")
    return (height, width) if turned else (width, height)


def read_orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF tag that says how the pixels are turned or mirrored: 1 (not at all) to 8.

    Raises:
        DataError: as `read_image`, as far as the header tells.
    """
    path = Path(path)
    with _open(path) as file:
        image = _identify(path, file)
        return _early_orientation(image, _tail(image, file))


def check_size(path: str | os.PathLike[str], found: tuple[int, int], stated: tuple[int, int]) -> None:
    """Raise DataError where the width and height `found` in a file differ from those `stated` by its annotation."""
    if found != stated:
        raise DataError(
            f"image {path} is {found[0]}x{found[1]} (after EXIF rotation), but its annotation says "
            f"{stated[0]}x{stated[1]}: boxes would not fit; correct width and height, or the image"
        )


def _open(path: Path) -> IO[bytes]:
    if fault := file_fault(path):
        raise DataError(f"image {path} {fault}")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"image {path} cannot be read ({error.strerror})") from error


def _identify(path: Path, file: IO[bytes]) -> Image.Image:
    """Open the header and refuse a decompression bomb."""
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(16)
        what = f"no image (it starts with {start!r}; read are {', '.join(FORMATS)})" if start else "empty (0 bytes)"
        raise DataError(f"image {path} is {what}: replace it") from error
    except Image.DecompressionBombError as error:
        size = str(error).partition(" exceeds")[0]
        raise DataError(f"image {path} is too large ({size}); at most {MAX_PIXELS:,} pixels are read") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise DataError(f"image {path} has a broken header ({error}): replace it") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"image {path} is too large ({width}x{height}); at most {MAX_PIXELS:,} pixels are read")
    return image


def _identify_sound(path: Path, file: IO[bytes]) -> Image.Image:
    """As `_identify`; a PNG's check sums are compared first, which Pillow does not do while it decodes."""
    image = _identify(path, file)
    if image.format != "PNG":
        return image
    try:
        image.verify()
    except (OSError, SyntaxError, ValueError, IndexError) as error:
        raise DataError(f"image {path} is broken or cut short ({error}): replace it") from error
    file.seek(0)
    return _identify(path, file)


def _decode(path: Path, image: Image.Image, convert: Callable[[], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Decode an image and convert it, with one kind of error for a broken file."""
    try:
        image.load()
        return convert()
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, MemoryError) as error:
        raise DataError(f"image {path} is broken or cut short ({error}): replace it") from error


def _tail(image: Image.Image, file: IO[bytes]) -> bytes:
    """The file's last bytes; its position stays."""
    position = file.tell()
    length = _PNG_TAIL if image.format == "PNG" else _TAIL
    file.seek(-min(length, file.seek(0, os.SEEK_END)), os.SEEK_END)
    tail = file.read()
    file.seek(position)
    return tail


def _early_orientation(image: Image.Image, tail: bytes) -> int:
    # A PNG's own way to ask decodes it, for what may stand behind the pixels; what stands before them is known.
    if image.format == "PNG" and not any(mark in tail for mark in _ORIENTATION_MARKS):
        return _orientation(lambda: Image.Image.getexif(image))
    return _orientation(image.getexif)


def _orientation(read: Callable[[], Image.Exif]) -> int:
    try:
        found = int(read().get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block raises almost anything, and is no reason to lose the image
        return 1
    return found if found in _TRANSPOSE else 1


def _to_uint8(image: Image.Image, mode: str, path: Path) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return gray if mode == "L" else np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    if image.mode in ("I", "F"):
        raise DataError(f"image {path} holds {image.mode!r} pixels of 32 bits, whose range is unknown: save it with 8")
    # Pillow converts by copying, even to the mode that an image has.
    return np.array(image if image.mode == mode else image.convert(mode))
