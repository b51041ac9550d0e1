"""Pictures of objects and of classes' areas."""

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

# RGB, H×W×3.
Picture = NDArray[np.uint8]
Objects = Sequence[dict[str, Any]]

# Of the objects of a labelled image; each takes milliseconds, and thousands hide one another.
MOST_SHOWN = 300
_CAPTION_HEIGHT = 18
_GAP = 4  # pixels of white between pictures
_LONGEST = 65_000  # pixels of a side, about what a JPEG file can have
_OPACITY = 0.5  # of the classes' areas
_NO_CLASS = 255  # in label maps
# Pixels of a label map's picture: matplotlib takes 85 bytes for each, 1 GB.
_MOST_LABELLED = 12_000_000


def sheet(pictures: Sequence[Picture], columns: int) -> Picture:
    """Lay pictures out in rows of `columns`, on white; each row is as high as its highest."""
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
    """Draw an image with its objects.

    Args:
        image: the image.
        objects: as in the "annotations" of Detectron2's records, perhaps with a `score`; masks are drawn where all have
            one.
        class_names: by class number.
        width: of the outcome, in pixels, unless its longer side became longer than `longest` or its shorter one less
            than a pixel.
        longest: side of the outcome, in pixels.
    """
    visualizer = Visualizer(image, scale=_scale(image, width, longest))
    if objects:
        _add_objects(visualizer, objects, class_names)
    return _Canvas(visualizer.output).finish()


def _add_objects(visualizer: Visualizer, objects: Objects, class_names: Sequence[str]) -> None:
    classes = [o["category_id"] for o in objects]
    colours = colormap(rgb=True, maximum=1)
    masks = [o.get("segmentation") for o in objects]
    size = visualizer.output.height, visualizer.output.width
    visualizer.overlay_instances(
        boxes=np.array([BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]),
        # As polygons, one at a time: Detectron2 would keep all of them as pixels.
        masks=[GenericMask(mask, *size).polygons for mask in masks] if all(masks) else None,
        labels=[_label(class_names[c], o) for c, o in zip(classes, objects, strict=True)],
        assigned_colors=[colours[c % len(colours)] for c in classes],
    )


def draw_labels(image: Picture, labels: NDArray[np.uint8], class_names: Sequence[str], width: int) -> Picture:
    """Draw an image with the areas of its classes and their names.

    Args:
        image: the image.
        labels: `H×W` numbers of its pixels' classes; 255, which is no class, stays as it is.
        class_names: by class number.
        width: of the outcome, in pixels, with the limits of `draw`; an image of more than 12 million pixels is
            drawn with so many.
    """
    factor = min(1, math.sqrt(_MOST_LABELLED / labels.size))
    if factor < 1:
        image, labels = _resized(image, labels, factor)
        width = min(width, labels.shape[1])
    elif labels.shape[1] == 2:  # Detectron2 takes such a mask for something else
        image, labels = _resized(image, labels, 2)
    colours = Metadata(stuff_classes=class_names, stuff_colors=class_colours().tolist())
    visualizer = Visualizer(image, colours, scale=_scale(image, width, _LONGEST))
    canvas = _Canvas(visualizer.output)
    numbers, areas = np.unique(labels[labels < len(class_names)], return_counts=True)
    # A class at a time, the largest first: the layers of all take gigabytes.
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
    """The pixels that are drawn on, of an image in the size of its picture.

    Matplotlib's own way to show an image takes 120 bytes a pixel, 6 GB for one of 8000×6000; this one takes 4. The
    outcome is the same.

    Args:
        output: of a visualizer, with its image as the only artist.
    """

    def __init__(self, output: VisImage) -> None:
        self._output = output
        self._renderer = output.canvas.get_renderer()
        self._pixels = np.asarray(self._renderer.buffer_rgba())
        for shown in list(output.ax.images):
            shown.remove()
        height, width = self._pixels.shape[:2]
        # Detectron2's figures are 0.01 pixels too large, and what does not fit into whole pixels is cut off at the top.
        cut = output.height * output.scale + 0.01 - height
        rows = (np.arange(height) + 0.5 + cut) * output.height / (height + cut)
        columns = (np.arange(width) + 0.5) * output.width / (output.width * output.scale + 0.01)
        self._pixels[:, :, :3] = output.img[rows.astype(int)[:, None], columns.astype(int)]
        self._pixels[:, :, 3] = 255

    def flatten(self) -> None:
        """Draw what was added as images, and forget it. Outlines and texts come above all of these in any case."""
        for layer in list(self._output.ax.images):
            layer.draw(self._renderer)
            layer.remove()

    def finish(self) -> Picture:
        """The picture with all that was added."""
        self._output.fig.draw(self._renderer)
        return self._pixels[:, :, :3].copy()


def class_colours() -> NDArray[np.uint8]:
    """Colours of 256 classes, `256×3` RGB, by the golden ratio around the colour wheel."""
    hue = (np.arange(256) * 0.618 % 1 * 255).astype(np.uint8)
    wheel = np.stack([hue, hue * 0 + 200, hue * 0 + 230], axis=1)
    return np.asarray(Image.fromarray(wheel[None], "HSV").convert("RGB"))[0]


def _scale(image: Picture, width: int, longest: int) -> float:
    sides = image.shape[:2]
    return max(min(width / image.shape[1], longest / max(sides)), 1 / min(sides))


def _label(name: str, shown: dict[str, Any]) -> str:
    return f"{name} {shown['score']:.0%}" if "score" in shown else name


def caption_of(text: str, count: int) -> str:
    """The caption of a picture of so many objects, with "300 of 2000 objects" where it shows the first ones only."""
    return text if count <= MOST_SHOWN else ", ".join(filter(None, (text, f"{MOST_SHOWN} of {count} objects")))


def captioned(picture: Picture, text: str) -> Picture:
    """The picture below a line of black text on white."""
    strip = Image.new("RGB", (picture.shape[1], _CAPTION_HEIGHT), "white")
    ImageDraw.Draw(strip).text((2, 2), text, fill="black")
    return np.concatenate([np.asarray(strip), picture])
