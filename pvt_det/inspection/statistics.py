"""Numbers that describe a data set: counts, class balance, sizes of boxes and images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pvt_det.data.coco.annotations import CocoData

# Bounds of the histogram of box sizes, in pixels of the square root of the area; COCO's small, medium and large objects
# meet at 32 and 96.
_SIZE_BOUNDS = (0, 8, 16, 32, 64, 96, 128, 256, 512)


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs: objects without crowd regions, and images that have it."""

    name: str
    objects: int
    images: int


@dataclass(frozen=True)
class Statistics:
    """Numbers of a data set's sound part.

    Attributes:
        images: number of images.
        empty_images: of them, without any object.
        objects: number of objects, crowd regions not counted.
        crowds: number of crowd regions.
        polygons: objects whose mask is made of polygons.
        run_lengths: objects whose mask is run-length encoded.
        classes: in the order of the class numbers.
        boxes: `N×2` width and height of the objects' boxes, pixels; empty ones are left out.
        box_images: `N×2` width and height of their images.
        image_sizes: how many images have a width and height, most frequent first.
        per_image: `images` numbers of objects.
    """

    images: int
    empty_images: int
    objects: int
    crowds: int
    polygons: int
    run_lengths: int
    classes: list[ClassCount]
    boxes: npt.NDArray[np.float64]
    box_images: npt.NDArray[np.float64]
    image_sizes: list[tuple[tuple[int, int], int]]
    per_image: npt.NDArray[np.int64]

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return self.objects > 0 and self.polygons + self.run_lengths == self.objects

    def box_histogram(self) -> dict[str, int]:
        """Number of boxes by the square root of their area in pixels."""
        counts, _ = np.histogram(np.sqrt(self.boxes.prod(axis=1)), [*_SIZE_BOUNDS, np.inf])
        labels = [f"{low} to {high}" for low, high in pairwise(_SIZE_BOUNDS)]
        return dict(zip([*labels, f"{_SIZE_BOUNDS[-1]} or more"], counts.tolist(), strict=True))


def describe(data: CocoData) -> Statistics:
    """Count what is in a checked data set."""
    objects = [annotation for annotation in data.annotations if not annotation["iscrowd"]]
    per_class = Counter(annotation["category_id"] for annotation in objects)
    images_of = Counter(class_id for class_id, _ in {(a["category_id"], a["image_id"]) for a in objects})
    per_image = Counter(annotation["image_id"] for annotation in objects)
    masks = Counter(type(annotation.get("segmentation")) for annotation in objects)
    sizes = {image["id"]: (image["width"], image["height"]) for image in data.images}
    whole = [a for a in objects if a["bbox"][2] > 0 and a["bbox"][3] > 0]
    return Statistics(
        images=len(data.images),
        empty_images=sum(image["id"] not in per_image for image in data.images),
        objects=len(objects),
        crowds=len(data.annotations) - len(objects),
        polygons=masks[list],
        run_lengths=masks[dict],
        classes=[ClassCount(c["name"], per_class[c["id"]], images_of[c["id"]]) for c in data.categories],
        boxes=np.array([a["bbox"][2:] for a in whole], dtype=np.float64).reshape(-1, 2),
        box_images=np.array([sizes[a["image_id"]] for a in whole], dtype=np.float64).reshape(-1, 2),
        image_sizes=Counter(sizes.values()).most_common(),
        per_image=np.array([per_image[image["id"]] for image in data.images], dtype=np.int64),
    )
