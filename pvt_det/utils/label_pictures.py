"""Paint label maps: classes in their colors, pixels without a class in gray stripes, and errors in red."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pvt_det.utils.colors import class_colors
from pvt_det.utils.plates import font

Picture = NDArray[np.uint8]
# Name and RGB color of a class in a legend. None instead of the color for pixels without a class.
Entry: TypeAlias = tuple[str, Sequence[int] | None]
VOID_NAME = "void (ignored)"
_OPACITY = 0.65
_STRIPE = 5  # pixels, width of a stripe
_DARK, _BRIGHT = 70, 200  # gray values of the stripes
_WRONG = (214, 32, 39)
# Sizes in the legend, in pixels.
_ROW, _BOX, _SPACE, _FONT = 22, 14, 18, 13
_MOST_ENTRIES = 40


def paint(image: Picture, labels: NDArray[np.integer], ignore_value: int) -> Picture:
    """Paint the label map of an image over it.

    Args:
        image: The image, `H×W×3`, RGB.
        labels: Class index of each pixel, `H×W`, from 0 to 255.
        ignore_value: Value of the pixels without a class, which are striped.

    Returns:
        The painted image, `H×W×3`, RGB.
    """
    colors = class_colors()[labels.clip(0, 255)]
    return _blend(image, np.where((labels == ignore_value)[:, :, None], _stripes(labels.shape), colors))


def paint_errors(
    image: Picture, truth: NDArray[np.integer], predicted: NDArray[np.integer], ignore_value: int
) -> Picture:
    """Mark the wrong pixels of a prediction in red on a pale gray image.

    Args:
        image: The image, `H×W×3`, RGB.
        truth: True class index of each pixel, `H×W`.
        predicted: Predicted class index of each pixel, `H×W`.
        ignore_value: Value of the pixels without a class in `truth`. They are striped, and no prediction is wrong
            there.

    Returns:
        The marked image, `H×W×3`, RGB.
    """
    gray = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    pale = (gray / 2 + 110).astype(np.uint8)
    is_void = (truth == ignore_value)[:, :, None]
    is_wrong = (truth != predicted)[:, :, None] & ~is_void
    marked = np.where(is_wrong, np.array(_WRONG), pale)
    return np.where(is_wrong | is_void, _blend(pale, np.where(is_void, _stripes(truth.shape), marked)), pale)


def shrink(image: Picture, labels: Sequence[NDArray[np.uint8]], width: int) -> tuple[Picture, list[NDArray[np.uint8]]]:
    """Scale an image and its label maps to a width, keeping the aspect ratio. Smaller ones are enlarged.

    Args:
        image: The image, `H×W×3`, RGB.
        labels: Label maps of the image, each `H×W`.
        width: Width of the results in pixels.

    Returns:
        The image, and the label maps without new values.
    """
    size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
    scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    nearest = Image.Resampling.NEAREST
    return scaled, [np.asarray(Image.fromarray(each).resize(size, nearest)) for each in labels]


def legend_entries(maps: Iterable[NDArray[np.integer]], class_names: Sequence[str], ignore_value: int) -> list[Entry]:
    """List the classes that occur in label maps, the most frequent first, and void at the end.

    Args:
        maps: The label maps, each `H×W`.
        class_names: Class names by class index. Missing names are replaced by the index.
        ignore_value: Value of the pixels without a class.

    Returns:
        Name and RGB color of each class; None instead of the color for void.
    """
    counts = sum((np.bincount(each.ravel(), minlength=256) for each in maps), start=np.zeros(256, np.int64))
    found = [int(value) for value in np.argsort(-counts, kind="stable") if counts[value] and value != ignore_value]
    names = [class_names[value] if value < len(class_names) else str(value) for value in found]
    void: list[Entry] = [(VOID_NAME, None)] if counts[ignore_value] else []
    return [*zip(names, class_colors()[found].tolist(), strict=True), *void]


def draw_legend(entries: Sequence[Entry], width: int) -> Picture:
    """Draw the colors of classes with their names, in as many rows as needed.

    Args:
        entries: Name and color of each class as `legend_entries` returns them. At most 40 are drawn.
        width: Width of the legend in pixels.

    Returns:
        The legend on white, `H×width×3`, RGB.
    """
    places, x, y = [], _SPACE // 2, 0
    for name, color in entries[:_MOST_ENTRIES]:
        length = _BOX + 6 + int(font(_FONT).getlength(name))
        if x > _SPACE // 2 and x + length > width:
            x, y = _SPACE // 2, y + _ROW
        places.append((x, y, name, color))
        x += length + _SPACE
    if others := len(entries) - len(places):
        y += _ROW
    canvas = Image.new("RGB", (width, y + _ROW + 4), "white")
    draw = ImageDraw.Draw(canvas)
    for left, top, name, color in places:
        box = _stripes((_BOX, _BOX)) if color is None else np.full((_BOX, _BOX, 3), color, np.uint8)
        canvas.paste(Image.fromarray(box), (left, top + 4))
        draw.text((left + _BOX + 6, top + 3), name, fill="black", font=font(_FONT))
    if others:
        draw.text((_SPACE // 2, y + 3), f"… and {others} other classes", fill="black", font=font(_FONT))
    return np.asarray(canvas)


def _blend(image: Picture, colors: NDArray[np.integer]) -> Picture:
    return (image * (1 - _OPACITY) + colors * _OPACITY).round().astype(np.uint8)


def _stripes(shape: Sequence[int]) -> Picture:
    """Return diagonal gray stripes, `H×W×3`."""
    rows, columns = np.indices(tuple(shape), sparse=True)
    gray = np.where((rows + columns) // _STRIPE % 2, _DARK, _BRIGHT).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)
