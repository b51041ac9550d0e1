"""A generated data set of the size of COCO train2017, for the start-up suite."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pvt_det.utils.files import write_atomically

# COCO train2017.
IMAGES, OBJECTS = 118_287, 860_001
_CLASSES = 80
_WIDTH, _HEIGHT = 640, 480
# Objects take their shape from one of these many. About as many vertices as in COCO give a file of about 400 MB.
_SHAPES, _VERTICES = 4096, (4, 36)
# A file system allows about 65,000 links to a file.
_LINKS = 4000


@dataclass(frozen=True)
class CocoSet:
    """Files of a generated data set.

    Attributes:
        json_file: The annotations.
        image_root: The folder of the images.
        images: Number of images.
        objects: Number of objects, one polygon each.
    """

    json_file: Path
    image_root: Path
    images: int
    objects: int


def generate(folder: Path, images: int) -> CocoSet:
    """Generate a data set, unless the folder already has it.

    The images are links to a few small JPEG files. The objects have random classes and polygons, as many per image as
    in COCO, and are not sorted by image.

    Args:
        folder: Folder of the data set.
        images: Number of images.
    """
    objects = round(images * OBJECTS / IMAGES)
    found = CocoSet(folder / f"annotations-{images}.json", folder / f"images-{images}", images, objects)
    if not found.json_file.exists():
        _write_images(found)
        write_atomically(found.json_file, _annotations(found))
    return found


def _file_name(number: int) -> str:
    return f"{number:012d}.jpg"


def _write_images(found: CocoSet) -> None:
    found.image_root.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, _WIDTH, dtype=np.uint8)
    for number in range(1, found.images + 1):
        path = found.image_root / _file_name(number)
        if number % _LINKS == 1:
            source = path
            source.unlink(missing_ok=True)
            Image.fromarray(np.tile(np.roll(ramp, number), (_HEIGHT, 1))).convert("RGB").save(source)
        elif not path.exists():
            os.link(source, path)


def _annotations(found: CocoSet) -> str:
    generator = np.random.default_rng(0)
    shapes = list(_shapes(generator))
    owners = generator.integers(1, found.images + 1, found.objects).tolist()
    classes = generator.integers(1, _CLASSES + 1, found.objects).tolist()
    chosen = generator.integers(0, _SHAPES, found.objects).tolist()
    annotations = [
        f'{{{shapes[shape]}, "iscrowd": 0, "image_id": {owner}, "category_id": {class_}, "id": {number}}}'
        for number, (owner, class_, shape) in enumerate(zip(owners, classes, chosen, strict=True), start=1)
    ]
    images = [
        {
            "license": 3,
            "file_name": _file_name(number),
            "coco_url": f"http://images.cocodataset.org/train2017/{_file_name(number)}",
            "height": _HEIGHT,
            "width": _WIDTH,
            "date_captured": "2013-11-14 11:18:45",
            "id": number,
        }
        for number in range(1, found.images + 1)
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, _CLASSES + 1)]
    head = json.dumps({"images": images, "categories": categories})
    return head[:-1] + ', "annotations": [' + ", ".join(annotations) + "]}"


def _shapes(generator: np.random.Generator) -> Iterator[str]:
    """Yield the keys of a polygon, its box and its area, as JSON without the braces."""
    for _ in range(_SHAPES):
        angles = np.sort(generator.random(int(generator.integers(*_VERTICES)))) * 2 * np.pi
        radii = np.exp(generator.normal(3.5, 0.7, (2, 1))).clip(4, _HEIGHT / 2 - 8)
        center = radii + generator.random((2, 1)) * (np.array([[_WIDTH], [_HEIGHT]]) - 2 * radii)
        points = (center + radii * np.stack([np.cos(angles), np.sin(angles)])).round(2)
        low, high = points.min(axis=1), points.max(axis=1)
        box = [*low.tolist(), *(high - low).round(2).tolist()]
        area = round(float(np.prod(high - low)) * 0.7, 4)
        line = points.T.reshape(-1).round(2).tolist()
        yield json.dumps({"segmentation": [line], "area": area, "bbox": box})[1:-1]
