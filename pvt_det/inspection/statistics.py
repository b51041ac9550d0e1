"""Compute statistics of a data set: counts, class balance, and sizes of boxes and images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pvt_det.data.coco.annotations import CocoData

# Histogram bounds for the square root of the box area, in pixels. COCO separates small, medium and large objects at 32
# and 96.
_SIZE_BOUNDS = (0, 8, 16, 32, 64, 96, 128, 256, 512)


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs.

    Attributes:
        name: Class name.
        objects: Number of objects, without crowd regions.
        images: Number of images with such an object.
    """

    name: str
    objects: int
    images: int


@dataclass(frozen=True)
class Statistics:
    """Statistics of the valid part of a data set.

    Attributes:
        images: Number of images.
        empty_images: Number of images without objects.
        objects: Number of objects, without crowd regions.
        crowds: Number of crowd regions.
        polygons: Number of objects with a polygon mask.
        run_lengths: Number of objects with a run-length encoded mask.
        classes: Counts per class, in the order of the class numbers.
        boxes: `N×2` width and height of the objects' boxes in pixels, without empty boxes.
        box_images: `N×2` width and height in pixels of the image of each box.
        image_sizes: Pairs of image size (width, height) and number of images, most frequent size first.
        per_image: Number of objects of each image.
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
        """Count boxes by the square root of their area, with labels such as "8 to 16" (pixels)."""
        counts, _ = np.histogram(np.sqrt(self.boxes.prod(axis=1)), [*_SIZE_BOUNDS, np.inf])
        labels = [f"{low} to {high}" for low, high in pairwise(_SIZE_BOUNDS)]
        return dict(zip([*labels, f"{_SIZE_BOUNDS[-1]} or more"], counts.tolist(), strict=True))


def describe(data: CocoData) -> Statistics:
    """Compute the statistics of a checked data set.

    Args:
        data: The valid annotations and images.
    """
    objects = [annotation for annotation in data.annotations if not annotation["iscrowd"]]
    per_class = Counter(annotation["category_id"] for annotation in objects)
    images_of = Counter(class_id for class_id, _ in {(a["category_id"], a["image_id"]) for a in objects})
    per_image = Counter(annotation["image_id"] for annotation in objects)
    masks = Counter(type(annotation.get("segmentation")) for annotation in objects)
    sizes = {image["id"]: (image["width"], image["height"]) for image in data.images}
    nonempty = [a for a in objects if a["bbox"][2] > 0 and a["bbox"][3] > 0]
    return Statistics(
        images=len(data.images),
        empty_images=sum(image["id"] not in per_image for image in data.images),
        objects=len(objects),
        crowds=len(data.annotations) - len(objects),
        polygons=masks[list],
        run_lengths=masks[dict],
        classes=[ClassCount(c["name"], per_class[c["id"]], images_of[c["id"]]) for c in data.categories],
        boxes=np.array([a["bbox"][2:] for a in nonempty], dtype=np.float64).reshape(-1, 2),
        box_images=np.array([sizes[a["image_id"]] for a in nonempty], dtype=np.float64).reshape(-1, 2),
        image_sizes=Counter(sizes.values()).most_common(),
        per_image=np.array([per_image[image["id"]] for image in data.images], dtype=np.int64),
    )
