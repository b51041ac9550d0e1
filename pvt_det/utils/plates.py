"""Write labels on images: text on opaque plates that do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pvt_det.utils.colors import Color, contrasting

# Sizes to try, as fractions of the usual font size, until every label finds a free place.
_SIZES = (1.0, 0.8, 0.65)
_MIN_FONT = 9  # pixels
_WIDEST = 0.4  # longer names are cut to this fraction of the width of the image
_NEAR = 0.06  # cost of each step down the list of places, as a fraction of the label that may cover other objects
_AWAY = (1, 2, 3)  # distances from the box, in heights of a label, of the last places to try


def add_labels(
    canvas: NDArray[np.uint8],
    labels: Sequence[str],
    boxes: NDArray[np.float64],
    colors: Sequence[Color],
    font_size: int,
    *,
    centered: bool = False,
) -> None:
    """Write a label at each box of an image, in place.

    The text becomes smaller if the labels have no room otherwise. A label that still has no room is left out; the last
    boxes come first.

    Args:
        canvas: The image to write on, `H×W×3` RGB.
        labels: Text of each label. "" writes no label.
        boxes: The boxes, `N×4` (x1, y1, x2, y2) in pixels.
        colors: Color of the plate behind each text.
        font_size: Usual size of the text in pixels.
        centered: Whether to write the labels in the middle of the boxes instead of at their edges.
    """
    lines = [" ".join(label.split()) for label in labels]
    height, width = canvas.shape[:2]
    for factor in _SIZES:
        plates = [_Plate(line, max(_MIN_FONT, round(font_size * factor)), round(width * _WIDEST)) for line in lines]
        places = place_labels(boxes, [plate.size for plate in plates], (width, height), centered=centered)
        if all(place is not None or not line for place, line in zip(places, lines, strict=True)):
            break
    for plate, place, color in zip(plates, places, colors, strict=True):
        if place is not None:
            plate.paint(canvas, place, color)


def place_labels(
    boxes: NDArray[np.float64],
    sizes: Sequence[tuple[int, int]],
    canvas: tuple[int, int],
    *,
    centered: bool = False,
) -> list[tuple[int, int] | None]:
    """Find a place for the label of each box, inside the image and without covering another label.

    Among the free places at the edges of a box, the one that covers least of the other boxes is chosen, and one above
    the box rather than one below or inside.

    Args:
        boxes: The boxes, `N×4` (x1, y1, x2, y2) in pixels. The last one is placed first.
        sizes: Width and height of each label in pixels. A label of width 0 is not placed.
        canvas: Width and height of the image in pixels.
        centered: Whether the middle of the box is the preferred place.

    Returns:
        The left and top pixel of each label, or None if nothing is free.
    """
    limit = np.array(canvas)
    low, high = _candidates(boxes, np.array(sizes, np.int64).reshape(-1, 2), limit, centered)
    # The share of a place that covers other boxes, plus its rank.
    area = np.maximum(1, (high - low).prod(axis=2))
    covered = _covered(low, high, boxes) / area + _NEAR * np.arange(low.shape[1])
    fits: NDArray[np.bool_] = np.asarray(np.all(high <= limit, axis=2))
    taken = np.zeros((0, 4), np.int64)
    places: list[tuple[int, int] | None] = [None] * len(sizes)
    for number in reversed(range(len(sizes))):
        first, last = low[number, :, None], high[number, :, None]
        apart = np.any((first >= taken[:, 2:]) | (last <= taken[:, :2]), axis=2)
        free = np.all(apart, axis=1) & fits[number]
        if sizes[number][0] == 0 or not free.any():
            continue
        best = int(np.where(free, covered[number], np.inf).argmin())
        left, top = low[number, best].tolist()
        places[number] = (left, top)
        taken = np.concatenate([taken, [[left, top, *high[number, best]]]])
    return places


def _candidates(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64], canvas: NDArray[np.int64], centered: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return both corners of the possible places of each label, `N×P×2`, the best places first."""
    x1, y1, x2, y2 = np.rint(boxes).astype(np.int64).T
    width, height = sizes.T
    middle = (x1 + x2 - width) // 2
    above, below, inside_top, inside_bottom = y1 - height, y2, y1, y2 - height
    at_left, at_right = x1, x2 - width
    edges = [
        *((x, above) for x in (at_left, at_right, middle)),
        *((x, inside_top) for x in (at_left, at_right)),
        *((x, below) for x in (at_left, at_right, middle)),
        *((x, inside_bottom) for x in (at_left, at_right)),
        *((x, y) for x in (x2, x1 - width) for y in (inside_top, inside_bottom)),  # beside the box
        *((x, above - n * height) for n in _AWAY for x in (at_left, at_right)),
        *((x, below + n * height) for n in _AWAY for x in (at_left, at_right)),
    ]
    center = [(middle, (y1 + y2 - height) // 2)]
    corners = np.array(center + edges if centered else edges + center).transpose(2, 0, 1)
    low = np.clip(corners, 0, np.maximum(0, canvas - sizes)[:, None])
    return low, low + sizes[:, None]


def _covered(low: NDArray[np.int64], high: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area that each place shares with the boxes of other labels, `N×P`."""
    covered = np.zeros(low.shape[:2])
    for number, box in enumerate(boxes):
        shared = (np.minimum(high, box[2:]) - np.maximum(low, box[:2])).clip(0).prod(axis=2)
        shared[number] = 0
        covered += shared
    return covered


class _Plate:
    """A line of text with a margin.

    Args:
        text: The text; "" for no plate.
        font_size: Size of the text in pixels.
        max_width: Maximum width of the plate in pixels, to which the text is cut.
    """

    def __init__(self, text: str, font_size: int, max_width: int) -> None:
        self._font, self._font_size = font(font_size), font_size
        self._margin = max(2, font_size // 4)
        self._text = self._shortened(text, max_width)
        ascent, descent = self._font.getmetrics()
        self.size = (self._width(self._text), ascent + descent + self._margin // 2) if self._text else (0, 0)

    def paint(self, canvas: NDArray[np.uint8], place: tuple[int, int], color: Color) -> None:
        """Paint the plate on an image, with its left and top pixel at `place`."""
        (left, top), (width, height) = place, self.size
        ink = contrasting(color)
        image = Image.new("RGB", self.size, ink)
        pen = ImageDraw.Draw(image)
        rim = max(1, self._margin // 4)
        pen.rectangle((rim, rim, width - rim - 1, height - rim - 1), fill=color)
        pen.text((self._margin, self._margin // 4), self._text, fill=ink, font=self._font)
        canvas[top : top + height, left : left + width] = np.asarray(image)

    def _width(self, text: str) -> int:
        return _length(text, self._font_size) + 2 * self._margin + 1

    def _shortened(self, text: str, max_width: int) -> str:
        if self._width(text) <= max_width:
            return text
        while text and self._width(text + "…") > max_width:
            text = text[:-1]
        return text + "…" if text else ""


@lru_cache(maxsize=4096)
def _length(text: str, font_size: int) -> int:
    return int(font(font_size).getlength(text))


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of drawings.

    Args:
        size: Size of the text in pixels.
    """
    # Matplotlib's font has Latin, Greek and Cyrillic letters. The one in Pillow has only Latin letters.
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
