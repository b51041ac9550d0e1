"""Draw objects and segmentation label maps on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pvt_det.utils.colors import Color, class_colors, contrasting, object_colors
from pvt_det.utils.plates import add_labels
from pvt_det.utils.regions import rasterize

# An RGB image, H×W×3.
Picture = NDArray[np.uint8]
Objects = Sequence[dict[str, Any]]

# Number of labeled objects that are drawn on one image. More would hide one another.
MAX_SHOWN = 300
_CAPTION_HEIGHT = 18
_GAP = 4  # white pixels between images
_LONGEST = 65_000  # pixels; the side of a JPEG image is limited to 65,535
_OPACITY = 0.5  # of the classes of a label map
# Widths of lines and sizes of text, as fractions of the mean side of the drawing.
_LINE, _FONT, _MIN_FONT = 0.0032, 0.018, 12
_MIN_LINE = 2  # pixels; with a pixel of rim on both sides, the color of a thinner line would not be seen
_THINNEST = 10  # a line is at most this fraction of the side of a box
_FAR = 1e6  # limit of box coordinates in pixels
_LABEL_SIDE = 512  # pixels; a label map is reduced to this size to find places for the names
_INNER = 0.95  # least distance of a name from other classes, as a fraction of the largest possible distance


def sheet(pictures: Sequence[Picture], columns: int) -> Picture:
    """Arrange images in a grid on a white background. Each row is as high as its highest image.

    Args:
        pictures: The images, `H×W×3`.
        columns: Number of images in a row.

    Returns:
        The grid as one image.
    """
    rows = [_join(pictures[start : start + columns], axis=1) for start in range(0, len(pictures), columns)]
    return _join(rows, axis=0)


def _join(pictures: Sequence[Picture], axis: int) -> Picture:
    other = 1 - axis
    longest = max(picture.shape[other] for picture in pictures)
    padded = []
    for number, picture in enumerate(pictures):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[other] = (0, longest - picture.shape[other])
        pad[axis] = (_GAP if number else 0, 0)
        padded.append(np.pad(picture, pad, constant_values=255))
    return np.concatenate(padded, axis)


def draw(
    image: Picture,
    objects: Objects,
    class_names: Sequence[str],
    width: int,
    longest: int = _LONGEST,
    *,
    distinct: bool = True,
) -> Picture:
    """Draw objects on an image.

    Lines are opaque with a contrasting rim. Lines and text grow with the drawing. Labels do not cover each other; where
    they do not fit, those of the first objects are left out.

    Args:
        image: The image, `H×W×3`, RGB.
        objects: Objects in the format of "annotations" in Detectron2's records, optionally with a `score` and a
            `track_id`. The last ones are drawn on top. The mask is drawn of those that have one.
        class_names: Names of the classes, by class index.
        width: Width of the result in pixels. It is adjusted if the longer side would exceed `longest` or the shorter
            side would be less than a pixel.
        longest: Maximum length of the longer side of the result in pixels.
        distinct: Whether neighboring objects of one class have different colors. False gives every object the color of
            its class, which does not flicker in a video.

    Returns:
        The drawing, `H×W×3`, RGB.
    """
    canvas = _resized(image, width, longest)
    if not objects:
        return canvas
    size = canvas.shape[1], canvas.shape[0]
    scale = size[0] / image.shape[1], size[1] / image.shape[0]
    boxes = _boxes(objects) * (*scale, *scale)
    classes = [o["category_id"] for o in objects]
    colors = object_colors(boxes, classes, len(class_names), distinct=distinct)
    lines = [_line_width(canvas, box) for box in boxes]
    regions = [rasterize(o["segmentation"], scale, size) if o.get("segmentation") else None for o in objects]
    for region, color in zip(regions, colors, strict=True):
        if region is not None:
            region.fill(canvas, color)
    edges = np.array(boxes)
    for number, (region, color, line) in enumerate(zip(regions, colors, lines, strict=True)):
        if region is not None:
            region.outline(canvas, color, line, _rim(line))
        edges[number] = _add_box(canvas, boxes[number], color, line)
    labels = [_label(class_names[c], o) for c, o in zip(classes, objects, strict=True)]
    add_labels(canvas, labels, edges, colors, _font_size(canvas))
    return canvas


def _boxes(objects: Objects) -> NDArray[np.float64]:
    """Return the boxes as `N×4` (x1, y1, x2, y2). Annotations with problems may have a negative width."""
    boxes = np.array([BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects], np.float64)
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    return np.clip(np.concatenate([low, high], axis=1), -_FAR, _FAR)


def _add_box(canvas: Picture, box: NDArray[np.float64], color: Color, line: int) -> tuple[int, int, int, int]:
    """Draw a box whose lines lie inside the image. Return its outer edges."""
    height, width = canvas.shape[:2]
    rim = _rim(line)
    reach = line / 2 + rim
    left, top = (round(float(v)) for v in np.clip(box[:2] - reach, 0, (width - 1, height - 1)))
    right, bottom = (round(float(v)) for v in np.clip(box[2:] + reach, (left + 1, top + 1), (width, height)))
    for inset, thick, paint in ((0, line + 2 * rim, contrasting(color)), (rim, line, color)):
        x1, y1, x2, y2 = left + inset, top + inset, right - inset, bottom - inset
        canvas[y1 : min(y1 + thick, y2), x1:x2] = paint
        canvas[max(y2 - thick, y1) : y2, x1:x2] = paint
        canvas[y1:y2, x1 : min(x1 + thick, x2)] = paint
        canvas[y1:y2, max(x2 - thick, x1) : x2] = paint
    return left, top, right, bottom


def _line_width(canvas: Picture, box: NDArray[np.float64] | None = None) -> int:
    width = max(_MIN_LINE, _LINE * _mean_side(canvas))
    if box is not None:
        width = min(width, float((box[2:] - box[:2]).min()) / _THINNEST)
    return max(1, round(width))


def _rim(line: int) -> int:
    return max(1, round(line / 3))


def _font_size(canvas: Picture) -> int:
    return max(_MIN_FONT, round(_FONT * _mean_side(canvas)))


def _mean_side(canvas: Picture) -> float:
    return (canvas.shape[0] + canvas.shape[1]) / 2


def draw_labels(image: Picture, labels: NDArray[np.uint8], class_names: Sequence[str], width: int) -> Picture:
    """Draw a label map and the names of its classes on an image.

    Args:
        image: The image, `H×W×3`, RGB.
        labels: Label map, `H×W`, with the class index of each pixel. Pixels with 255 have no class and are unchanged.
        class_names: Names of the classes, by class index.
        width: Width of the result in pixels, adjusted as in `draw`.

    Returns:
        The drawing, `H×W×3`, RGB.
    """
    return draw_regions(image, labels, class_names, class_colors()[: len(class_names)], width)


def draw_regions(
    image: Picture, regions: NDArray[np.uint8], names: Sequence[str], colors: NDArray[np.uint8], width: int
) -> Picture:
    """Draw regions, such as classes or segments, and their names on an image.

    Args:
        image: The image, `H×W×3`, RGB.
        regions: Index of the region of each pixel, `H×W`. Pixels with an index that has no name are unchanged.
        names: Names of the regions, by index, at most 255.
        colors: Colors of the regions, by index, `N×3` RGB.
        width: Width of the result in pixels, adjusted as in `draw`.

    Returns:
        The drawing, `H×W×3`, RGB.
    """
    canvas = _resized(image, width)
    regions = cv2.resize(regions, canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    known = (regions < len(names)).astype(np.uint8)
    table = np.zeros((256, 3), np.uint8)
    table[: len(names)] = colors
    painted = cv2.LUT(cv2.merge([regions] * 3), table[None])
    cv2.copyTo(cv2.addWeighted(canvas, 1 - _OPACITY, painted, _OPACITY, 0), known, canvas)
    # A line in the color of the region on each side of a border, and a black one between them.
    line = _line_width(canvas)
    cv2.copyTo(painted, _borders(regions, line + 1) & known, canvas)
    canvas[(_borders(regions, _rim(line)) & known) > 0] = 0
    present = [int(index) for index in np.unique(regions) if index < len(names)]
    add_labels(
        canvas,
        [names[index] for index in present],
        _middles(regions, present),
        [(int(red), int(green), int(blue)) for red, green, blue in table[present]],
        _font_size(canvas),
        centered=True,
    )
    return canvas


def _borders(regions: NDArray[np.uint8], reach: int) -> NDArray[np.uint8]:
    """Return a mask of the pixels within `reach` pixels of a pixel of another region."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return (cv2.dilate(regions, kernel) != cv2.erode(regions, kernel)).astype(np.uint8)


def _middles(regions: NDArray[np.uint8], indices: Sequence[int]) -> NDArray[np.float64]:
    """Return a point of each region that is far from all others, as an empty box."""
    height, width = regions.shape
    factor = min(1, _LABEL_SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(regions, size, interpolation=cv2.INTER_NEAREST_EXACT)
    middles = np.zeros((len(indices), 4))
    for number, index in enumerate(indices):
        mask = (small == index).astype(np.uint8)
        if not mask.any():  # too small to be seen in the reduced map
            row, column = np.argwhere(regions == index)[0] + 0.5
            middles[number] = [column, row] * 2
            continue
        depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)
        inner = np.argwhere(depth >= _INNER * depth.max())
        row, column = inner[((inner - inner.mean(axis=0)) ** 2).sum(axis=1).argmin()]
        middles[number] = [(column - 0.5) * width / size[0], (row - 0.5) * height / size[1]] * 2
    return middles


def _resized(image: Picture, width: int, longest: int = _LONGEST) -> Picture:
    """Return a copy of an image with the given width, within the limits of its sides."""
    sides = image.shape[:2]
    scale = max(min(width / sides[1], longest / max(sides)), 1 / min(sides))
    size = (max(1, int(sides[1] * scale + 0.01)), max(1, int(sides[0] * scale + 0.01)))
    if size == (sides[1], sides[0]):
        return np.array(image)
    # Averages pixels when reducing, which keeps thin structures.
    return cv2.resize(
        np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )


def _label(name: str, shown: dict[str, Any]) -> str:
    number = f" #{shown['track_id']}" if "track_id" in shown else ""
    return f"{name}{number} {shown['score']:.0%}" if "score" in shown else f"{name}{number}"


def caption_of(text: str, count: int) -> str:
    """Extend the caption of a drawing by "300 of 2000 objects" if it shows only the first objects.

    Args:
        text: The caption without the number of objects; may be empty.
        count: Number of objects in the image, of which at most `MAX_SHOWN` are drawn.
    """
    return text if count <= MAX_SHOWN else ", ".join(filter(None, (text, f"{MAX_SHOWN} of {count} objects")))


def captioned(picture: Picture, text: str) -> Picture:
    """Add a caption above an image, as a line of black text on white.

    Args:
        picture: The image, `H×W×3`, RGB.
        text: The caption.

    Returns:
        The image with its caption, 18 pixels higher.
    """
    strip = Image.new("RGB", (picture.shape[1], _CAPTION_HEIGHT), "white")
    ImageDraw.Draw(strip).text((2, 2), text, fill="black")
    return np.concatenate([np.asarray(strip), picture])
