"""Draw objects and segmentation label maps on images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import GenericMask, VisImage, Visualizer
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pvt_det.utils.colors import class_colors

# An RGB image, H×W×3.
Picture = NDArray[np.uint8]
Objects = Sequence[dict[str, Any]]

# Number of labeled objects that are drawn on one image. Each takes milliseconds, and thousands hide one another.
MAX_SHOWN = 300
_CAPTION_HEIGHT = 18
_GAP = 4  # white pixels between images
_LONGEST = 65_000  # pixels; the side of a JPEG image is limited to 65,535
_OPACITY = 0.5  # of the colored regions
_NO_CLASS = 255  # in label maps
# Limit for drawing a label map: matplotlib takes 85 bytes per pixel, so 1 GB.
_MAX_LABELED_PIXELS = 12_000_000


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


def draw(image: Picture, objects: Objects, class_names: Sequence[str], width: int, longest: int = _LONGEST) -> Picture:
    """Draw objects on an image.

    Args:
        image: The image, `H×W×3`, RGB.
        objects: Objects in the format of "annotations" in Detectron2's records, optionally with a `score`. Masks are
            drawn only if all objects have one.
        class_names: Names of the classes, by class index.
        width: Width of the result in pixels. It is adjusted if the longer side would exceed `longest` or the shorter
            side would be less than a pixel.
        longest: Maximum length of the longer side of the result in pixels.

    Returns:
        The drawing, `H×W×3`, RGB.
    """
    visualizer = Visualizer(image, scale=_scale(image, width, longest))
    if objects:
        _add_objects(visualizer, objects, class_names)
    return _Canvas(visualizer.output).finish()


def _add_objects(visualizer: Visualizer, objects: Objects, class_names: Sequence[str]) -> None:
    classes = [o["category_id"] for o in objects]
    colors = colormap(rgb=True, maximum=1)
    masks = [o.get("segmentation") for o in objects]
    size = visualizer.output.height, visualizer.output.width
    visualizer.overlay_instances(
        boxes=np.array([BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]),
        # Masks are converted to polygons one at a time. Detectron2 would keep all of them as bitmaps.
        masks=[GenericMask(mask, *size).polygons for mask in masks] if all(masks) else None,
        labels=[_label(class_names[c], o) for c, o in zip(classes, objects, strict=True)],
        assigned_colors=[colors[c % len(colors)] for c in classes],
    )


def draw_labels(image: Picture, labels: NDArray[np.uint8], class_names: Sequence[str], width: int) -> Picture:
    """Draw a label map and the names of its classes on an image.

    Args:
        image: The image, `H×W×3`, RGB.
        labels: Label map, `H×W`, with the class index of each pixel. Pixels with 255 have no class and are unchanged.
        class_names: Names of the classes, by class index.
        width: Width of the result in pixels, adjusted as in `draw`. An image of more than 12 million pixels is first
            reduced to that number.

    Returns:
        The drawing, `H×W×3`, RGB.
    """
    factor = min(1, math.sqrt(_MAX_LABELED_PIXELS / labels.size))
    if factor < 1:
        image, labels = _resized(image, labels, factor)
        width = min(width, labels.shape[1])
    elif labels.shape[1] == 2:  # Detectron2 mistakes a mask of width 2 for another format
        image, labels = _resized(image, labels, 2)
    colors = Metadata(stuff_classes=class_names, stuff_colors=class_colors().tolist())
    visualizer = Visualizer(image, colors, scale=_scale(image, width, _LONGEST))
    canvas = _Canvas(visualizer.output)
    numbers, areas = np.unique(labels[labels < len(class_names)], return_counts=True)
    # One class at a time, the largest first: the layers of all classes together would take gigabytes.
    for number in numbers[np.argsort(-areas)]:
        only = np.where(labels == number, labels, np.uint8(_NO_CLASS))
        visualizer.draw_sem_seg(only, area_threshold=0, alpha=_OPACITY)
        canvas.flatten()
    return canvas.finish()


def _resized(image: Picture, labels: NDArray[np.uint8], factor: float) -> tuple[Picture, NDArray[np.uint8]]:
    height, width = (max(1, int(side * factor)) for side in labels.shape)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    return np.asarray(small), np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


class _Canvas:
    """The pixels of a drawing, starting with the image at the size of the drawing.

    Matplotlib takes 120 bytes per pixel to show an image, 6 GB for one of 8000×6000. This class takes 4 bytes per
    pixel, with the same result.

    Args:
        output: Output of a visualizer whose only artist is the image.
    """

    def __init__(self, output: VisImage) -> None:
        self._output = output
        self._renderer = output.canvas.get_renderer()
        self._pixels = np.asarray(self._renderer.buffer_rgba())
        for shown in list(output.ax.images):
            shown.remove()
        height, width = self._pixels.shape[:2]
        # Detectron2's figures are 0.01 pixels too large, and a fraction of a pixel is cut off at the top.
        cut = output.height * output.scale + 0.01 - height
        rows = (np.arange(height) + 0.5 + cut) * output.height / (height + cut)
        columns = (np.arange(width) + 0.5) * output.width / (output.width * output.scale + 0.01)
        self._pixels[:, :, :3] = output.img[rows.astype(int)[:, None], columns.astype(int)]
        self._pixels[:, :, 3] = 255

    def flatten(self) -> None:
        """Draw all added image layers and remove them. Outlines and labels are drawn above them in any case."""
        for layer in list(self._output.ax.images):
            layer.draw(self._renderer)
            layer.remove()

    def finish(self) -> Picture:
        """Draw everything that was added and return the pixels."""
        self._output.fig.draw(self._renderer)
        return self._pixels[:, :, :3].copy()


def _scale(image: Picture, width: int, longest: int) -> float:
    sides = image.shape[:2]
    return max(min(width / image.shape[1], longest / max(sides)), 1 / min(sides))


def _label(name: str, shown: dict[str, Any]) -> str:
    return f"{name} {shown['score']:.0%}" if "score" in shown else name


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
