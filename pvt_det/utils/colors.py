"""Colors that are easy to tell apart: of the classes of label maps, and of objects, whose neighbors differ."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

# An RGB color, 0 to 255.
Color: TypeAlias = tuple[int, int, int]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Colors of objects. Bright enough for a black rim: the contrast ratio with black is at least 6.
_COLORS: tuple[Color, ...] = (
    (255, 85, 65),  # red
    (0, 220, 255),  # cyan
    (255, 225, 0),  # yellow
    (255, 125, 225),  # pink
    (75, 240, 95),  # green
    (115, 165, 255),  # blue
    (255, 160, 50),  # orange
    (190, 145, 255),  # violet
    (0, 200, 150),  # teal
    (210, 255, 125),  # lime
)
_PALE, _DARK = 0.6, 0.38  # share of white in a pale shade; brightness of a dark one
_REACH = 0.15  # boxes are neighbors if they touch when each side moves outward by this fraction of their size
# Colors of the classes of label maps: how many, and the levels of red, green and blue of which candidates are mixed.
_CLASSES, _LEVELS = 256, 14
# Lightness and chroma of the candidates in CIELAB. Dark, pale and gray colors are hard to see on photographs, and gray
# means "no class".
_LIGHTNESS, _MIN_CHROMA = (30, 88), 30


@functools.cache
def class_colors() -> NDArray[np.uint8]:
    """Return the colors of 256 classes, `256×3` RGB, each as different as possible from those before it.

    Differences are distances in CIELAB, as in Glasbey et al., Colour displays for categorical images (2007). The array
    is shared and cannot be written to.
    """
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = cv2.cvtColor(candidates[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    is_usable = (lab[:, 0] > _LIGHTNESS[0]) & (lab[:, 0] < _LIGHTNESS[1]) & (np.hypot(*lab[:, 1:].T) > _MIN_CHROMA)
    candidates, lab = candidates[is_usable], lab[is_usable]
    distances = np.linalg.norm(lab - (50, 0, 0), axis=1)
    chosen = []
    for _ in range(_CLASSES):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    colors = candidates[chosen]
    colors.setflags(write=False)
    return colors


def object_colors(
    boxes: NDArray[np.float64], classes: Sequence[int], class_count: int, *, distinct: bool = True
) -> list[Color]:
    """Choose a color for each object. Every class has its own color, and its shades tell neighbors apart.

    A model with a single class uses all colors for its objects. Colors repeat after ten classes.

    Args:
        boxes: Boxes of the objects, `N×4` (x1, y1, x2, y2).
        classes: Class index of each object.
        class_count: Number of classes of the model.
        distinct: Whether neighboring objects of one class have different colors. False gives every object the color of
            its class, which does not flicker in a video.

    Returns:
        The RGB color of each object, 0 to 255.
    """
    shades = [_shades(index, class_count) for index in range(max(class_count, *classes, 0) + 1)]
    if not distinct:
        return [shades[index][0] for index in classes]
    near = _neighbors(boxes) & np.equal.outer(classes, classes)
    chosen = np.full(len(classes), -1)
    for number, index in enumerate(classes):
        taken = chosen[near[number]]
        chosen[number] = np.bincount(taken[taken >= 0], minlength=len(shades[index])).argmin()
    return [shades[index][shade] for index, shade in zip(classes, chosen, strict=True)]


def contrasting(color: Color) -> Color:
    """Return black for a bright color and white for a dark one, for text on it and rims around it.

    Args:
        color: The RGB color, 0 to 255.
    """
    return BLACK if luminance(color) > 0.18 else WHITE


def luminance(color: Sequence[float]) -> float:
    """Return the relative luminance of a color, from 0 for black to 1 for white (WCAG 2.1).

    Args:
        color: The RGB color, 0 to 255.
    """
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in color))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _shades(index: int, class_count: int) -> tuple[Color, ...]:
    if class_count == 1:
        return _COLORS
    red, green, blue = _COLORS[index % len(_COLORS)]
    pale = tuple(int(value + (255 - value) * _PALE) for value in (red, green, blue))
    dark = tuple(int(value * _DARK) for value in (red, green, blue))
    return (red, green, blue), (pale[0], pale[1], pale[2]), (dark[0], dark[1], dark[2])


def _neighbors(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return an `N×N` matrix that says which boxes are close to each other."""
    margin = (boxes[:, 2:] - boxes[:, :2]).mean(axis=1, keepdims=True) * _REACH
    low, high = boxes[:, :2] - margin, boxes[:, 2:] + margin
    return ((low[:, None] <= high[None]) & (low[None] <= high[:, None])).all(axis=2)
