"""Writes a generated detection set: shapes, each class in a colour of its own, on a noisy grey background.

It trains from nothing in minutes, needs no download, and comes out the same on every machine: each image has its own
random stream (NumPy's `RandomState`, whose numbers are frozen for good), outlines are rounded before they are filled,
and PNG keeps every pixel. A larger `--train` or `--val` therefore adds images and leaves the others as they are.

Every object's mask, polygons, box and area describe the part that is visible: a later shape hides an earlier one.
Beside COCO's `annotations/instances_<split>.json` and the images in `<split>/` stand, for segmentation,

- `semantic_<split>/`: label maps, 0 the background and c+1 for category c;
- `panoptic_<split>/` and `annotations/panoptic_<split>.json`: COCO's panoptic format, the background being stuff;
- `panoptic_stuff_<split>/`: label maps for Panoptic FPN, 0 all things and 1 the background.

Example:
    .venv/bin/python datasets/make_shapes.py --root datasets/shapes --train 800 --val 200
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvt_det.errors import DataError
from pvt_det.structures.rle import decode, from_polygon
from pvt_det.utils.cli import ArgumentParser, run_cli
from pvt_det.utils.paths import make_folder

SPLITS = ("train", "val")
MAX_OBJECTS = 5  # in an image
EMPTY_IMAGES = 0.04  # real sets have images without objects too
COLOUR_SPREAD = 30  # of each of red, green and blue, about the class's colour
TILT = 0.1  # radians that a shape leans at most
MIN_VISIBLE = 0.6  # of a shape's area, whatever covers it
OUTLINE_SCALE = 8  # masks are enlarged this much before their outlines are traced
# Category id of the background, behind those of the shapes.
BACKGROUND_ID = 5
_BACKGROUND_SEGMENT = 1

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


@dataclass
class Shape:
    """One drawn shape.

    Attributes:
        category: index into `CATEGORIES`.
        outline: corners, K×2 pixels (x, y), rounded to 0.01.
        full: H×W, the whole shape inside the image.
        visible: H×W, what later shapes leave of it.
    """

    category: int
    outline: NDArray[np.float64]
    full: Mask
    visible: Mask


def write_shapes(root: str | Path, *, train: int = 800, val: int = 200, image_size: int = 128, seed: int = 0) -> Path:
    """Write the set below `root` and return that folder.

    Layout: `annotations/instances_{train,val}.json`, `train/*.png`, `val/*.png`; and for segmentation what
    the module's docstring describes. Files that are there already are overwritten.

    Args:
        root: folder to write to; made where absent.
        train: number of training images.
        val: number of held-out images, from other random streams than the training images.
        image_size: side of the square images in pixels, at least 32.
        seed: any number from 0 to 2³² − 1; another seed gives another set.

    Raises:
        ConfigError: the folder cannot be made or written in.
        DataError: a number is out of range.
    """
    if image_size < 32:
        raise DataError(f"image_size is {image_size}: shapes need images of at least 32 pixels")
    if min(train, val) < 1:
        raise DataError(f"train is {train} and val is {val}: each split needs at least 1 image")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}: expected a number from 0 to {2**32 - 1}")
    root = Path(root)
    make_folder(root / "annotations")
    for index, (split, count) in enumerate(zip(SPLITS, (train, val), strict=True)):
        instances, segments = _write_split(root, split, count, image_size, (seed, index))
        for kind, content in (("instances", instances), ("panoptic", panoptic_json(instances, segments))):
            (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))
    return root


def _write_split(
    root: Path, split: str, count: int, size: int, stream: tuple[int, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one split's images and label maps; returns its instances json and its panoptic annotations."""
    (root / split).mkdir(exist_ok=True)
    make_folders(root, split)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    segments: list[dict[str, Any]] = []
    for number in range(count):
        pixels, shapes = make_image(np.random.RandomState([*stream, number]), size)
        # Numbers alternate between the splits, so that no id or file name occurs in both.
        image_id = number * len(SPLITS) + SPLITS.index(split) + 1
        name = f"{image_id:06d}.png"
        Image.fromarray(pixels).save(root / split / name, compress_level=1)
        images.append({"id": image_id, "file_name": name, "height": size, "width": size})
        first = len(objects)
        for shape in shapes:
            objects.append({"id": len(objects) + 1, "image_id": image_id, "iscrowd": 0, **annotation_of(shape)})
        segments.append(write_labels(root, split, images[-1], [shape.visible for shape in shapes], objects[first:]))
    instances = {
        "info": {"description": f"generated shapes, {split}", "size": size, "seed": stream[0]},
        "licenses": [],
        "images": images,
        "annotations": objects,
        "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CATEGORIES)],
    }
    return instances, segments


def make_image(random: np.random.RandomState, size: int) -> tuple[Pixels, list[Shape]]:
    """Return one image, `size`×`size`×3 RGB, and its shapes in the order they were drawn."""
    shapes: list[Shape] = []
    empty = random.uniform() < EMPTY_IMAGES
    for _ in range(0 if empty else random.randint(1, MAX_OBJECTS + 1)):
        _place(random, size, shapes)
    pixels = random.randint(80, 176) + _smooth_noise(random, size, 40)
    for shape in shapes:
        colour = COLOURS[shape.category] + random.randint(-COLOUR_SPREAD, COLOUR_SPREAD + 1, 3)
        paint = colour + _smooth_noise(random, size, 20)
        pixels[shape.visible] = paint[shape.visible]
    pixels += random.randint(-12, 13, pixels.shape)
    return pixels.round().clip(0, 255).astype(np.uint8), shapes


def annotation_of(shape: Shape) -> dict[str, Any]:
    """Return COCO's `category_id`, `segmentation` (polygons), `bbox` (x, y, w, h) and `area` in pixels."""
    whole = (shape.visible == shape.full).all()
    polygons = [shape.outline] if whole else _trace(shape.visible)
    rows, columns = (np.flatnonzero(shape.visible.any(axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": shape.category + 1,
        "segmentation": [polygon.ravel().tolist() for polygon in polygons],
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(shape.visible.sum()),
    }


def _place(random: np.random.RandomState, size: int, shapes: list[Shape]) -> None:
    """Add one shape, at a place where every shape stays recognisable; give up after some tries."""
    category = random.randint(len(CATEGORIES))
    for _ in range(20):
        radius = size * random.uniform(0.1, 0.26)
        centre = random.uniform(radius, size - radius, 2)
        angle = UPRIGHT[category] + random.uniform(-TILT, TILT)
        outline = (centre + radius * OUTLINES[category](angle)).round(2)
        full = _fill(outline, size)
        left = [shape.visible & ~full for shape in shapes]
        if all(_recognisable(part, shape.full) for part, shape in zip(left, shapes, strict=True)):
            for part, shape in zip(left, shapes, strict=True):
                shape.visible = part
            shapes.append(Shape(category, outline, full, full))
            return


def _recognisable(visible: Mask, full: Mask) -> bool:
    """Tell whether enough is left, in pieces without holes: a COCO polygon cannot have one."""
    if visible.sum() < MIN_VISIBLE * full.sum():
        return False
    if (visible == full).all():
        return True
    _, hierarchy = cv2.findContours(visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return bool((hierarchy[0, :, 3] == -1).all())


def _fill(outline: NDArray[np.float64], size: int) -> Mask:
    """Return the mask that COCO's own code makes of a polygon, so that the annotation is exact."""
    return decode(from_polygon(outline.ravel().tolist(), size, size)).astype(bool)


def _trace(mask: Mask) -> list[NDArray[np.float64]]:
    """Return the outlines of a mask along the edges of its pixels, to within 1/16 pixel."""
    # OpenCV goes through the centres of the border's pixels; enlarged, these lie close to the pixels' edges.
    large = mask.repeat(OUTLINE_SCALE, axis=0).repeat(OUTLINE_SCALE, axis=1).astype(np.uint8)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((contour[:, 0] + 0.5) / OUTLINE_SCALE).round(2) for contour in contours]


def _smooth_noise(random: np.random.RandomState, size: int, strength: float) -> NDArray[np.float64]:
    """Return `size`×`size`×3 values between ±`strength` that change slowly from place to place."""
    knots = random.uniform(-strength, strength, (5, 5, 3))
    position = np.linspace(0, 4, size)[:, None]
    weight = np.clip(1 - np.abs(position - np.arange(5)), 0, 1)
    return (weight @ knots.transpose(2, 0, 1) @ weight.T).transpose(1, 2, 0)


def _regular(corners: int, inner: float | None = None) -> Callable[[float], NDArray[np.float64]]:
    """Return a function from an angle to a regular polygon of radius 1, or a star where `inner` is its inner radius."""

    def outline(angle: float) -> NDArray[np.float64]:
        count = corners if inner is None else 2 * corners
        turn = angle + 2 * np.pi * np.arange(count) / count
        radius = np.ones(count)
        if inner is not None:
            radius[1::2] = inner
        return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)

    return outline


OUTLINES: tuple[Callable[[float], NDArray[np.float64]], ...] = (
    _regular(32),
    _regular(4),
    _regular(3),
    _regular(5, 0.45),
)
# Angles in radians at which they stand upright, y pointing down.
UPRIGHT = (0.0, np.pi / 4, -np.pi / 2, -np.pi / 2)
CATEGORIES = ("circle", "square", "triangle", "star")
# A class has its own colour, give or take: outlines alone take a transformer far longer to learn than a demo may last.
COLOURS = ((210, 50, 50), (50, 170, 60), (50, 80, 210), (220, 200, 40))


def make_folders(root: Path, split: str) -> None:
    """Make the folders of a split's label maps."""
    for kind in ("semantic", "panoptic", "panoptic_stuff"):
        (root / f"{kind}_{split}").mkdir(parents=True, exist_ok=True)


def write_labels(
    root: Path, split: str, image: dict[str, Any], masks: Sequence[NDArray[np.bool_]], objects: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Write the three files of one image.

    Args:
        root: the set's folder.
        split: "train" or "val".
        image: entry of the json, with `id`, `file_name`, `height` and `width`.
        masks: visible pixels of each shape, `H×W`; no two overlap.
        objects: COCO's annotations of the shapes.

    Returns:
        The image's annotation in COCO's panoptic format.
    """
    semantic = np.zeros((image["height"], image["width"]), dtype=np.uint8)
    segments = np.full_like(semantic, _BACKGROUND_SEGMENT)
    infos = []
    for number, (mask, shape) in enumerate(zip(masks, objects, strict=True), start=_BACKGROUND_SEGMENT + 1):
        semantic[mask] = shape["category_id"]
        segments[mask] = number
        infos.append({"id": number, **{key: shape[key] for key in ("category_id", "bbox", "area", "iscrowd")}})
    background = segments == _BACKGROUND_SEGMENT
    whole = {"bbox": [0, 0, image["width"], image["height"]], "area": int(background.sum()), "iscrowd": 0}
    infos.append({"id": _BACKGROUND_SEGMENT, "category_id": BACKGROUND_ID, **whole})
    # Segment ids are written as R + 256 G + 256² B.
    colours = np.stack([segments, np.zeros_like(segments), np.zeros_like(segments)], axis=2)
    name = image["file_name"]
    for kind, pixels in (
        ("semantic", semantic),
        ("panoptic", colours),
        ("panoptic_stuff", background.astype(np.uint8)),
    ):
        Image.fromarray(pixels).save(root / f"{kind}_{split}" / name)
    return {"image_id": image["id"], "file_name": name, "segments_info": infos}


def panoptic_json(instances: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """COCO's panoptic json of a split, from its instances json and `write_labels`' annotations."""
    things = [{**category, "isthing": 1} for category in instances["categories"]]
    background = {"id": BACKGROUND_ID, "name": "background", "supercategory": "stuff", "isthing": 0}
    return {**instances, "annotations": annotations, "categories": [*things, background]}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set and say where it is."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/shapes"), help="folder to write to")
    parser.add_argument("--train", type=int, default=800, help="number of training images")
    parser.add_argument("--val", type=int, default=200, help="number of held-out images")
    parser.add_argument("--image-size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives another set")
    args = parser.parse_words(argv)
    root = write_shapes(args.root, train=args.train, val=args.val, image_size=args.image_size, seed=args.seed)
    print(f"Wrote {args.train} training and {args.val} validation images to {root}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
