"""Generate a detection data set of colored shapes on a noisy gray background.

A model trains on it from scratch in minutes. It needs no download and is identical on every machine: each image has its
own random stream (NumPy's `RandomState`, whose numbers never change), outlines are rounded before they are filled, and
PNG is lossless. A larger `--train` or `--val` therefore adds images and leaves the others unchanged.

Later shapes hide earlier ones. Masks, polygons, boxes and areas describe the visible part of an object. In addition to
COCO's `annotations/instances_<split>.json` and the images in `<split>/`, the script writes for segmentation:

- `semantic_<split>/`: label maps, with 0 for the background and c+1 for category c;
- `panoptic_<split>/` and `annotations/panoptic_<split>.json`: COCO's panoptic format, with the background as stuff;
- `panoptic_stuff_<split>/`: label maps for Panoptic FPN, with 0 for all things and 1 for the background.

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
MAX_OBJECTS = 5  # per image
EMPTY_IMAGES = 0.04  # probability of an image without objects, which real data sets contain too
COLOR_SPREAD = 30  # maximum difference of red, green and blue from the color of the class
TILT = 0.1  # maximum rotation from the upright position, in radians
MIN_VISIBLE = 0.6  # minimum visible fraction of a shape's area
OUTLINE_SCALE = 8  # factor by which masks are enlarged before their outlines are traced
# Category id of the background, after those of the shapes.
BACKGROUND_ID = 5
_BACKGROUND_SEGMENT = 1

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


@dataclass
class Shape:
    """One drawn shape.

    Attributes:
        category: Index into `CATEGORIES`.
        outline: Corners `K×2` (x, y) in pixels, rounded to 0.01.
        full: Mask `H×W` of the whole shape inside the image.
        visible: Mask `H×W` of the part that later shapes do not hide.
    """

    category: int
    outline: NDArray[np.float64]
    full: Mask
    visible: Mask


def write_shapes(root: str | Path, *, train: int = 800, val: int = 200, image_size: int = 128, seed: int = 0) -> Path:
    """Write the data set to a folder.

    The module's docstring describes the layout. Existing files are overwritten.

    Args:
        root: Folder to write to. It is created if it does not exist.
        train: Number of training images, at least 1.
        val: Number of validation images, at least 1. Their random streams differ from those of the training images.
        image_size: Side of the square images in pixels, at least 32.
        seed: Seed from 0 to 2³² − 1.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder cannot be created or written.
        DataError: A number is out of range.
    """
    if image_size < 32:
        raise DataError(f"image_size is {image_size}: expected at least 32 pixels")
    if min(train, val) < 1:
        raise DataError(f"train is {train} and val is {val}: expected at least 1 image per split")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}: expected an integer from 0 to {2**32 - 1}")
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
    """Write one split's images and label maps, and return its instances json and panoptic annotations."""
    (root / split).mkdir(exist_ok=True)
    make_folders(root, split)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    segments: list[dict[str, Any]] = []
    for number in range(count):
        pixels, shapes = make_image(np.random.RandomState([*stream, number]), size)
        # Ids alternate between the splits, so that no id or file name occurs in both.
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
    """Generate one image.

    Args:
        random: Source of all random choices.
        size: Side of the image in pixels.

    Returns:
        RGB pixels `size×size×3` and the shapes in drawing order.
    """
    shapes: list[Shape] = []
    empty = random.uniform() < EMPTY_IMAGES
    for _ in range(0 if empty else random.randint(1, MAX_OBJECTS + 1)):
        _place(random, size, shapes)
    pixels = random.randint(80, 176) + _smooth_noise(random, size, 40)
    for shape in shapes:
        color = COLORS[shape.category] + random.randint(-COLOR_SPREAD, COLOR_SPREAD + 1, 3)
        paint = color + _smooth_noise(random, size, 20)
        pixels[shape.visible] = paint[shape.visible]
    pixels += random.randint(-12, 13, pixels.shape)
    return pixels.round().clip(0, 255).astype(np.uint8), shapes


def annotation_of(shape: Shape) -> dict[str, Any]:
    """Build the COCO annotation of a shape.

    Args:
        shape: A shape with visible pixels.

    Returns:
        `category_id`, `segmentation` (polygons), `bbox` (x, y, width, height) and `area`, in pixels.
    """
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
    """Add one shape where every shape stays recognizable, unless 20 attempts fail."""
    category = random.randint(len(CATEGORIES))
    for _ in range(20):
        radius = size * random.uniform(0.1, 0.26)
        center = random.uniform(radius, size - radius, 2)
        angle = UPRIGHT[category] + random.uniform(-TILT, TILT)
        outline = (center + radius * OUTLINES[category](angle)).round(2)
        full = _fill(outline, size)
        remaining = [shape.visible & ~full for shape in shapes]
        if all(_recognizable(part, shape.full) for part, shape in zip(remaining, shapes, strict=True)):
            for part, shape in zip(remaining, shapes, strict=True):
                shape.visible = part
            shapes.append(Shape(category, outline, full, full))
            return


def _recognizable(visible: Mask, full: Mask) -> bool:
    """Return whether enough of a shape is visible, without holes, which COCO polygons cannot represent."""
    if visible.sum() < MIN_VISIBLE * full.sum():
        return False
    if (visible == full).all():
        return True
    _, hierarchy = cv2.findContours(visible.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return bool((hierarchy[0, :, 3] == -1).all())


def _fill(outline: NDArray[np.float64], size: int) -> Mask:
    """Rasterize a polygon with COCO's own code, so that the annotation is exact."""
    return decode(from_polygon(outline.ravel().tolist(), size, size)).astype(bool)


def _trace(mask: Mask) -> list[NDArray[np.float64]]:
    """Return the outlines of a mask along the edges of its pixels, to within 1/16 pixel."""
    # OpenCV traces the centers of border pixels. In the enlarged mask, these are close to the edges of the pixels.
    large = mask.repeat(OUTLINE_SCALE, axis=0).repeat(OUTLINE_SCALE, axis=1).astype(np.uint8)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((contour[:, 0] + 0.5) / OUTLINE_SCALE).round(2) for contour in contours]


def _smooth_noise(random: np.random.RandomState, size: int, strength: float) -> NDArray[np.float64]:
    """Return smooth noise `size×size×3` with values between ±`strength`."""
    knots = random.uniform(-strength, strength, (5, 5, 3))
    position = np.linspace(0, 4, size)[:, None]
    weight = np.clip(1 - np.abs(position - np.arange(5)), 0, 1)
    return (weight @ knots.transpose(2, 0, 1) @ weight.T).transpose(1, 2, 0)


def _regular(corners: int, inner: float | None = None) -> Callable[[float], NDArray[np.float64]]:
    """Return a function from an angle to a regular polygon of radius 1, or a star with an inner radius."""

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
# Angles in radians of the upright shapes, with y pointing down.
UPRIGHT = (0.0, np.pi / 4, -np.pi / 2, -np.pi / 2)
CATEGORIES = ("circle", "square", "triangle", "star")
# Each class has its own color, because a transformer needs far longer than a demo to learn classes from outlines alone.
COLORS = ((210, 50, 50), (50, 170, 60), (50, 80, 210), (220, 200, 40))


def make_folders(root: Path, split: str) -> None:
    """Create the folders of a split's label maps.

    Args:
        root: Folder of the data set.
        split: "train" or "val".
    """
    for kind in ("semantic", "panoptic", "panoptic_stuff"):
        (root / f"{kind}_{split}").mkdir(parents=True, exist_ok=True)


def write_labels(
    root: Path, split: str, image: dict[str, Any], masks: Sequence[NDArray[np.bool_]], objects: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Write the three label maps of one image.

    Args:
        root: Folder of the data set.
        split: "train" or "val".
        image: The image's entry in the json file, with `id`, `file_name`, `height` and `width`.
        masks: Masks `H×W` of the visible pixels of each shape, without overlap.
        objects: COCO annotations of the shapes.

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
    # A segment id is R + 256 G + 256² B.
    colors = np.stack([segments, np.zeros_like(segments), np.zeros_like(segments)], axis=2)
    name = image["file_name"]
    for kind, pixels in (
        ("semantic", semantic),
        ("panoptic", colors),
        ("panoptic_stuff", background.astype(np.uint8)),
    ):
        Image.fromarray(pixels).save(root / f"{kind}_{split}" / name)
    return {"image_id": image["id"], "file_name": name, "segments_info": infos}


def panoptic_json(instances: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """Build COCO's panoptic json of a split.

    Args:
        instances: Instances json of the split.
        annotations: Annotations returned by `write_labels`, one per image.
    """
    things = [{**category, "isthing": 1} for category in instances["categories"]]
    background = {"id": BACKGROUND_ID, "name": "background", "supercategory": "stuff", "isthing": 0}
    return {**instances, "annotations": annotations, "categories": [*things, background]}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set.

    Args:
        argv: Command-line arguments. By default those of the process.

    Returns:
        Exit code of the process.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/shapes"), help="folder to write to")
    parser.add_argument("--train", type=int, default=800, help="number of training images")
    parser.add_argument("--val", type=int, default=200, help="number of validation images")
    parser.add_argument("--image-size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set")
    args = parser.parse_words(argv)
    root = write_shapes(args.root, train=args.train, val=args.val, image_size=args.image_size, seed=args.seed)
    print(f"Wrote {args.train} training and {args.val} validation images to {root}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
