"""Read, check and repair COCO-format annotation files, so that later code can rely on valid data.

Problems with a single correct fix are fixed and counted: a missing `iscrowd` is 0, a missing area is computed from the
mask or box, and a polygon with fewer than three points, which covers nothing, is removed. How all other problems are
handled is described in `pvt_det.data.coco.findings`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self

import numpy as np

from pvt_det.data.coco.findings import Findings
from pvt_det.data.images import MAX_PIXELS
from pvt_det.data.storage.places import local_file
from pvt_det.errors import DataError
from pvt_det.structures.rle import areas, rle_problem
from pvt_det.utils import strict_json
from pvt_det.utils.digest import file_digest
from pvt_det.utils.paths import file_fault
from pvt_det.utils.text import UNPRINTABLE

# Coordinates of this size or larger are treated as mistakes.
MAX_COORDINATE = 1e8
# Rasterizing a polygon takes about 80 bytes per pixel of its outline, even for the part outside the image.
MAX_OUTLINE = 5e6
# In training, a polygon is enlarged until the sides of its box have this many pixels. Detectron2 clamps the sides of
# the box to at least 0.1 pixels.
MASK_SIDE, MIN_SIDE = 28, 0.1
# Evaluators store ids as float64, which is exact up to this value. They reject negative ids of images and categories.
MAX_ID = 2**53
_MAX_SHOWN_ID_LENGTH, _MAX_ORIGIN_LENGTH = 40, 200
# Names appear in tables and drawings. A name with a million characters keeps a terminal busy for minutes.
_MAX_NAME_LENGTH = 1000
# The types of JSON numbers; a bool is none.
NUMBERS = frozenset((int, float))
# A name without them is inside, unless it starts with a slash.
_OUTSIDE_MARKS = ("..", "\\", ":")
_OUTSIDE = "file_name that points outside the image folder (DATASETS.ALLOW_OUTSIDE True allows it)"


@dataclass(frozen=True)
class CocoData:
    """Checked content of an annotation file in COCO's layout.

    Attributes:
        images: Images, each with `id`, `file_name`, and `width` and `height` in pixels.
        annotations: Annotations, each with `id`, `image_id`, `category_id`, `bbox` (x, y, width, height in pixels),
            `area` in square pixels, `iscrowd` (0 or 1), and `segmentation` if it has a usable mask. Images and
            annotations converted from another format have `origin`, their place in the original files.
        categories: Categories, each with `id` and `name`, sorted by id.
        sha256: Digest of the annotation file, or "" if the data does not come from one.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    sha256: str = ""

    def without(self, image_ids: Collection[int]) -> Self:
        """Return the data without some images and their annotations.

        Args:
            image_ids: Ids of the images to leave out.
        """
        if not image_ids:
            return self
        return replace(
            self,
            images=[image for image in self.images if image["id"] not in image_ids],
            annotations=[a for a in self.annotations if a["image_id"] not in image_ids],
        )

    @property
    def class_names(self) -> list[str]:
        """Return the category names in the order of the contiguous class ids."""
        return [category["name"] for category in self.categories]


def read_json(json_file: str | Path) -> dict[str, Any]:
    """Read an annotation file and check its top-level keys.

    Args:
        json_file: Annotation file in COCO's instances format.

    Returns:
        The parsed content, whose images, annotations and categories are lists with unchecked elements.

    Raises:
        DataError: The file is missing, not JSON in UTF-8, or cut short; a key has two different values; or the lists of
            images, annotations or categories are missing.
    """
    path = local_file(json_file)
    _require_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"annotation file {path} cannot be read ({error.strerror})") from error
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"annotation file {path} starts with a byte-order mark. Save it as UTF-8 without one.")
    try:
        data = strict_json.loads(content)
    except UnicodeDecodeError as error:
        raise DataError(f"annotation file {path} is broken or not UTF-8 ({error}). Save it again as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"annotation file {path} is broken or cut short ({error}). Write or copy it again.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f"annotation file {path} has no list {key!r}. Expected COCO's instances format.")
    return data


def _require_file(path: Path) -> None:
    if fault := file_fault(path):
        raise DataError(f"annotation file {path} {fault}")


@dataclass(frozen=True)
class Content:
    """The content of an annotation file, of which images and categories are checked.

    Attributes:
        images: Valid images by id.
        categories: Valid categories, sorted by id.
        annotations: Annotations of any content.
        repeated: Ids that several annotations have.
        sha256: Digest of the annotation file.
        findings: Collects all problems of the file.
    """

    images: dict[int, dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[Any]
    repeated: set[int]
    sha256: str
    findings: Findings

    @cached_property
    def known_categories(self) -> set[int]:
        """Ids of the categories."""
        return {category["id"] for category in self.categories}

    def check(self, annotation: Any, index: int) -> bool:
        """Check an annotation, report its problems, and repair it in place.

        Args:
            annotation: The annotation.
            index: Its 0-based index in the file.

        Returns:
            Whether it is valid.
        """
        if not isinstance(annotation, dict):
            self.findings.add("annotation that is not a JSON object", f"number {index}")
            return False
        problem = _reference_problem(annotation, self)
        problem = problem or _box_problem(annotation["bbox"], self.images[annotation["image_id"]])
        problem = problem or _segmentation_problem(
            annotation, self.images[annotation["image_id"]], index, self.findings
        )
        if problem:
            self.findings.add(problem, entry_name("annotation", annotation, index))
            return False
        _fill_missing(annotation, index, self.findings)
        _report_unusual_box(annotation, self.images[annotation["image_id"]], index, self.findings)
        return True


def read_annotations(json_file: str | Path, findings: Findings, *, allow_outside: bool = False) -> CocoData:
    """Read and check an annotation file, and return its valid parts.

    Args:
        json_file: Annotation file in COCO's instances format.
        findings: Collects all problems of the file.
        allow_outside: Whether image file names may be absolute or contain `..`.

    Returns:
        The valid images, annotations and categories.

    Raises:
        DataError: The file is missing, not JSON in UTF-8, or cut short; a key has two different values; or the lists of
            images, annotations or categories are missing.
    """
    content = read_content(json_file, findings, allow_outside=allow_outside)
    annotations = [a for index, a in enumerate(content.annotations) if content.check(a, index)]
    boxes = [annotation["bbox"] for annotation in annotations if not annotation["iscrowd"]]
    has_boxes = any(box[2] > 0 and box[3] > 0 for box in boxes)
    counts = (len(content.images), len(content.categories), len(annotations), len(boxes))
    check_not_empty(*counts, has_boxes=has_boxes, findings=findings)
    return CocoData(list(content.images.values()), annotations, content.categories, content.sha256)


def read_content(json_file: str | Path, findings: Findings, *, allow_outside: bool = False) -> Content:
    """Read an annotation file, and check its images and categories.

    Args:
        json_file: Annotation file in COCO's instances format.
        findings: Collects all problems of the file.
        allow_outside: Whether image file names may be absolute or contain `..`.

    Raises:
        DataError: As for `read_annotations`.
    """
    path = local_file(json_file)
    _require_file(path)  # reading a pipe may never end
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(file_digest, path)
        raw = read_json(path)
    categories = _categories(raw["categories"], findings)
    images = {image["id"]: image for image in _images(raw["images"], findings, allow_outside)}
    ids = [a["id"] for a in raw["annotations"] if isinstance(a, dict) and _is_int(a.get("id"))]
    repeated = set()
    if len(set(ids)) < len(ids):
        repeated = {id_ for id_, count in Counter(ids).items() if count > 1}
    return Content(images, categories, raw["annotations"], repeated, digest.result(), findings)


def _categories(raw: list[Any], findings: Findings) -> list[dict[str, Any]]:
    """Return the valid categories, sorted by id."""
    valid = []
    for index, category in enumerate(raw):
        if problem := _category_problem(category):
            findings.add(problem, entry_name("category", category, index), fatal=True)
        else:
            valid.append(category)
    for key in ("id", "name"):
        for value, count in Counter(category[key] for category in valid).items():
            if count > 1:
                findings.add(f"duplicate category {key}", str(value), fatal=True)
    return sorted(valid, key=lambda category: category["id"])


def _category_problem(category: Any) -> str:
    if not isinstance(category, dict) or not _is_id(category.get("id")):
        return "category without an integer id from 0 to 2^53"
    if not _is_printable(category.get("name")) or len(category["name"]) > _MAX_NAME_LENGTH:
        return f"category without a printable name of at most {_MAX_NAME_LENGTH} characters"
    return ""


def _images(raw: list[Any], findings: Findings, allow_outside: bool) -> list[dict[str, Any]]:
    """Return the valid images."""
    counts = Counter(i.get("id") for i in raw if isinstance(i, dict) and _is_id(i.get("id")))
    images = []
    for index, image in enumerate(raw):
        if problem := _image_problem(image, counts):
            findings.add(problem, entry_name("image", image, index))
        elif not allow_outside and _is_outside(image["file_name"]):
            # It may be an attack, so it always stops the run.
            findings.add(_OUTSIDE, entry_name("image", image, index), fatal=True)
        else:
            images.append(image)
    return images


def _is_outside(file_name: str) -> bool:
    if not any(mark in file_name for mark in _OUTSIDE_MARKS) and file_name[0] != "/":
        return False
    path = PurePosixPath(file_name)
    return path.is_absolute() or PureWindowsPath(file_name).is_absolute() or ".." in path.parts


def _image_problem(image: Any, counts: Counter) -> str:
    if not isinstance(image, dict) or not _is_id(image.get("id")):
        return "image without an integer id from 0 to 2^53"
    if counts[image["id"]] > 1:
        return "duplicate image id"
    if not _is_printable(image.get("file_name")):
        return "image without a printable file_name"
    if not all(_is_int(image.get(side)) and image[side] > 0 for side in ("width", "height")):
        return "image whose width and height are not positive integers"
    if image["width"] * image["height"] > MAX_PIXELS:
        return f"image with more than {MAX_PIXELS:,} pixels, which is the limit"
    return ""


def _reference_problem(annotation: dict[str, Any], content: Content) -> str:
    if not _is_exact(annotation.get("id")):
        return "annotation without an integer id"
    if annotation["id"] in content.repeated:
        return "duplicate annotation id"
    if not _is_id(annotation.get("image_id")) or annotation["image_id"] not in content.images:
        return "annotation with an unknown or dropped image_id"
    if not _is_id(annotation.get("category_id")) or annotation["category_id"] not in content.known_categories:
        return "annotation with an unknown category_id"
    if "bbox" not in annotation:
        return "annotation without bbox"
    if annotation.get("ignore"):
        return "annotation with 'ignore' set, which is not supported (set iscrowd 1 for a region to ignore)"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return "annotation whose iscrowd is neither 0 nor 1"
    return ""


def _box_problem(box: Any, image: dict[str, Any]) -> str:
    if not isinstance(box, list) or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
        return "bbox that is not four numbers (x, y, width, height)"
    x, y, width, height = box
    if [value for value in box if not -MAX_COORDINATE < value < MAX_COORDINATE]:  # NaN, too
        return "bbox with NaN, infinity or a value of 1e8 or more"
    if width < 0 or height < 0:
        return "bbox with negative width or height"
    # An empty box is harmless: it is never used in training and never matched. COCO itself contains some.
    if width and height and (x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0):
        return "bbox entirely outside its image"
    return ""


def _segmentation_problem(annotation: dict[str, Any], image: dict[str, Any], index: int, findings: Findings) -> str:
    """Check the mask, repair it in place, and return the remaining problem or ""."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return rle_problem(segmentation, image["height"], image["width"])
    if isinstance(segmentation, list):
        for polygon in segmentation:
            problem = _polygon_problem(polygon, annotation["bbox"])
            if problem:
                return problem
        kept = [polygon for polygon in segmentation if len(polygon) >= 6]
        if len(kept) < len(segmentation):
            name = entry_name("annotation", annotation, index)
            findings.add("polygon with fewer than three points", name, repair="polygon removed")
        annotation["segmentation"] = kept
    elif segmentation is not None:
        return "segmentation that is neither polygons nor RLE"
    if not annotation.get("segmentation"):
        annotation.pop("segmentation", None)
    return ""


def _polygon_problem(polygon: Any, box: list[float]) -> str:
    if not isinstance(polygon, list) or len(polygon) % 2:
        return "polygon that is not a list of x, y pairs"
    if not polygon:
        return ""
    try:
        # Built-ins loop in C. NaN and infinity both show up in the sum.
        low, high, total = min(polygon), max(polygon), float(sum(polygon))
    except TypeError:
        return "polygon that is not a list of x, y pairs"
    except OverflowError:
        low, high, total = 0, 0, math.inf
    if not (math.isfinite(total) and -MAX_COORDINATE < low <= high < MAX_COORDINATE):
        return "polygon with NaN, infinity or a coordinate of 1e8 or more"
    enlarged = max(1.0, MASK_SIDE / max(MIN_SIDE, min(box[2:])))
    # The first product is a cheap upper bound on the length of the outline.
    if len(polygon) * (high - low) * enlarged > MAX_OUTLINE and _outline(polygon) * enlarged > MAX_OUTLINE:
        return (
            "polygon whose outline is too long to draw: it extends far outside its image, or its box is far too small"
        )
    return ""


def _outline(polygon: list[float]) -> float:
    """Return the outline's length in pixels; each edge counts as the larger of its width and height."""
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _fill_missing(annotation: dict[str, Any], index: int, findings: Findings) -> None:
    """Add a missing `iscrowd` or area to an annotation in place."""
    if "iscrowd" not in annotation:
        findings.add("annotation without iscrowd", entry_name("annotation", annotation, index), repair="set to 0")
    annotation["iscrowd"] = int(annotation.get("iscrowd", 0))
    area: Any = annotation.get("area")
    if type(area) not in NUMBERS or not 0 <= area < MAX_COORDINATE**2:
        name = entry_name("annotation", annotation, index)
        findings.add("annotation without a usable area", name, repair="computed from its mask or box")
        annotation["area"] = _area(annotation)


def _report_unusual_box(annotation: dict[str, Any], image: dict[str, Any], index: int, findings: Findings) -> None:
    x, y, width, height = annotation["bbox"]
    if not width or not height:
        kind, repair = "empty bbox", "ignored in training"
    elif x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        kind, repair = "bbox that extends outside its image by more than a pixel", "clipped in training"
    else:
        return
    findings.add(kind, entry_name("annotation", annotation, index), repair=repair)


def _area(annotation: dict[str, Any]) -> float:
    """Return the area of the mask in square pixels, or of the box if there is no mask."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return float(areas([segmentation])[0])
    if segmentation:
        corners = [(np.array(polygon[::2]), np.array(polygon[1::2])) for polygon in segmentation]
        return float(sum(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 for x, y in corners))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def check_not_empty(
    images: int, categories: int, annotations: int, single: int, *, has_boxes: bool, findings: Findings
) -> None:
    """Report a data set on which nothing can be trained.

    Args:
        images: Number of usable images.
        categories: Number of usable categories.
        annotations: Number of usable annotations.
        single: Number of them that are not crowd regions.
        has_boxes: Whether one of these has a box that is not empty.
        findings: Collects the problem.
    """
    for what, number in (("image", images), ("category", categories), ("annotation", annotations)):
        if not number:
            findings.add(f"no usable {what}", "the data set is empty", fatal=True)
            return
    if not single:
        findings.add("only crowd regions", f"all {annotations} annotations", fatal=True)
    elif not has_boxes:
        findings.add("only empty boxes", f"all {single} annotations", fatal=True)


def entry_name(what: str, entry: Any, index: int) -> str:
    """Name an entry of a list in a message.

    Args:
        what: "image", "annotation" or "category".
        entry: The entry, which may be invalid.
        index: Its 0-based index in the list.

    Returns:
        Its key "origin", which a file converted from another format has, such as "000012.xml, line 17". Otherwise its
        id, as "annotation 7", or its index if the id is missing or too long to show.
    """
    if not isinstance(entry, dict):
        return f"{what} number {index}"
    origin = entry.get("origin")
    if isinstance(origin, str) and _is_printable(origin) and len(origin) <= _MAX_ORIGIN_LENGTH:
        return origin
    if "id" not in entry:
        return f"{what} number {index}"
    shown = repr(entry["id"])
    return f"{what} {shown if len(shown) <= _MAX_SHOWN_ID_LENGTH else f'number {index}'}"


def _is_printable(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not UNPRINTABLE.search(value)


def _is_int(value: Any) -> bool:
    return type(value) is int  # neither a bool nor a float


def _is_exact(value: Any) -> bool:
    return type(value) is int and -MAX_ID <= value <= MAX_ID


def _is_id(value: Any) -> bool:
    """Check an image or category id. Annotation ids may be negative, since evaluation renumbers them."""
    return type(value) is int and 0 <= value <= MAX_ID
