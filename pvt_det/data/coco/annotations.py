"""COCO-format annotation files: read, checked and fixed, so that nothing after this meets a surprise.

Fixed and counted: what has one right value (`iscrowd` 0, an area that follows from the mask or box, a polygon of
fewer than three points, which covers nothing). What becomes of the rest, `pvt_det.data.coco.findings` says.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self

import numpy as np

from pvt_det.data.coco.findings import Findings
from pvt_det.data.images import MAX_PIXELS
from pvt_det.errors import DataError
from pvt_det.structures.rle import areas, rle_problem
from pvt_det.utils.paths import file_fault
from pvt_det.utils.text import UNPRINTABLE

# Coordinates from here on are mistakes.
_MAX_COORDINATE = 1e8
# A polygon is drawn along its outline, which takes about 80 bytes a pixel, wherever that runs.
_MAX_OUTLINE = 5e6
# For training it is enlarged until its box has this many pixels; Detectron2 takes a box for 0.1 pixels wide at least.
_MASK_SIDE, _MIN_SIDE = 28, 0.1
# Evaluators keep ids as float64, which is exact up to here, and of images and categories take no negative ones.
_MAX_ID = 2**53
_LONGEST_ID = 40
# In tables and pictures; one of a million characters keeps a terminal busy for minutes.
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class CocoData:
    """Checked content of an annotation file, as COCO lays it out.

    Attributes:
        images: each with `id`, `file_name`, `width`, `height`.
        annotations: each with `id`, `image_id`, `category_id`, `bbox` (x, y, width, height), `area`, `iscrowd`, and
            `segmentation` where it has a usable mask.
        categories: each with `id` and `name`, in the order of their ids.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]

    def without(self, image_ids: Collection[int]) -> Self:
        """Return the same data less some images and their objects."""
        if not image_ids:
            return self
        return replace(
            self,
            images=[image for image in self.images if image["id"] not in image_ids],
            annotations=[a for a in self.annotations if a["image_id"] not in image_ids],
        )

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the contiguous class numbers."""
        return [category["name"] for category in self.categories]


def read_json(json_file: str | Path) -> dict[str, Any]:
    """Read an annotation file's top level.

    Raises:
        DataError: it is missing, no UTF-8 json, cut short, or lacks images, annotations or categories.
    """
    path = Path(json_file)
    if fault := file_fault(path):
        raise DataError(f"annotation file {path} {fault}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"annotation file {path} cannot be read ({error.strerror})") from error
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"annotation file {path} starts with a byte-order mark: save it as UTF-8 without one")
    try:
        data = json.loads(content, object_pairs_hook=_unlike_keys)
    except UnicodeDecodeError as error:
        raise DataError(f"annotation file {path} is broken or no UTF-8 ({error}): write it again, as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"annotation file {path} is broken or cut short ({error}): write or copy it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DataError(f"annotation file {path} has no list {key!r}: expected COCO's instances format")
    return data


def _unlike_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object; Python's reader would keep the last of two values of a key and lose the first in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if value != found[name]:
                raise ValueError(f"the key {name!r} stands twice in one object, with different values")
    return found


def read_annotations(json_file: str | Path, findings: Findings, *, allow_outside: bool = False) -> CocoData:
    """Read and check an annotation file; all that is wrong goes to `findings`, and only sound parts come back.

    Args:
        json_file: the file.
        findings: takes the problems.
        allow_outside: file names may be absolute or climb with `..`.

    Raises:
        DataError: as `read_json`.
    """
    raw = read_json(json_file)
    categories = _categories(raw["categories"], findings)
    images = _images(raw["images"], findings, allow_outside)
    by_id = {image["id"]: image for image in images}
    known = {category["id"] for category in categories}
    ids = Counter(a.get("id") for a in raw["annotations"] if isinstance(a, dict) and _is_exact(a.get("id")))
    annotations = []
    for place, annotation in enumerate(raw["annotations"]):
        if not isinstance(annotation, dict):
            findings.add("annotation that is no object", f"number {place}")
            continue
        name = _name("annotation", annotation, place)
        wrong = _identity_problem(annotation, ids, by_id, known)
        wrong = wrong or _box_problem(annotation["bbox"], by_id[annotation["image_id"]])
        wrong = wrong or _segmentation_problem(annotation, by_id[annotation["image_id"]], name, findings)
        if wrong:
            findings.add(wrong, name)
            continue
        _complete(annotation, name, findings)
        _note_box(annotation["bbox"], by_id[annotation["image_id"]], name, findings)
        annotations.append(annotation)
    _usable(images, categories, annotations, findings)
    return CocoData(images, annotations, categories)


def require_masks(data: CocoData, findings: Findings) -> CocoData:
    """Report objects without a usable mask as problems, and leave them out; crowd regions need none.

    Args:
        data: Checked annotations.
        findings: Takes the problems.
    """
    kept = [a for a in data.annotations if a["iscrowd"] or "segmentation" in a]
    if len(kept) == len(data.annotations):
        return data
    for place, annotation in enumerate(data.annotations):
        if not annotation["iscrowd"] and "segmentation" not in annotation:
            kind = "annotation without a usable mask, which MODEL.MASK_ON needs"
            findings.add(kind, _name("annotation", annotation, place))
    _usable(data.images, data.categories, kept, findings)
    return replace(data, annotations=kept)


def _categories(raw: list[Any], findings: Findings) -> list[dict[str, Any]]:
    sound = []
    for place, category in enumerate(raw):
        if wrong := _category_problem(category):
            findings.add(wrong, _name("category", category, place), fatal=True)
        else:
            sound.append(category)
    for what in ("id", "name"):
        for value, count in Counter(category[what] for category in sound).items():
            if count > 1:
                findings.add(f"category {what} given twice", str(value), fatal=True)
    return sorted(sound, key=lambda category: category["id"])


def _category_problem(category: Any) -> str:
    if not isinstance(category, dict) or not _is_id(category.get("id")):
        return "category without an integer id of 0 to 2^53"
    if not _is_text(category.get("name")) or len(category["name"]) > _LONGEST_NAME:
        return f"category without a name of printable characters, at most {_LONGEST_NAME}"
    return ""


def _images(raw: list[Any], findings: Findings, allow_outside: bool) -> list[dict[str, Any]]:
    counts = Counter(i.get("id") for i in raw if isinstance(i, dict) and _is_id(i.get("id")))
    images = []
    for place, image in enumerate(raw):
        wrong = _image_problem(image, counts, allow_outside)
        if wrong:
            # A path out of the image folder may be an attack: it is never merely passed over.
            findings.add(wrong, _name("image", image, place), fatal="outside the image folder" in wrong)
        else:
            images.append(image)
    return images


def _image_problem(image: Any, counts: Counter, allow_outside: bool) -> str:
    if not isinstance(image, dict) or not _is_id(image.get("id")):
        return "image without an integer id of 0 to 2^53"
    if counts[image["id"]] > 1:
        return "image id given twice"
    file_name: Any = image.get("file_name")
    if not _is_text(file_name):
        return "image without a file_name of printable characters"
    if not all(_is_int(image.get(side)) and image[side] > 0 for side in ("width", "height")):
        return "image without positive integers width and height"
    if image["width"] * image["height"] > MAX_PIXELS:
        return f"image of more than {MAX_PIXELS:,} pixels, the most that are read"
    path = PurePosixPath(file_name)
    leaves = path.is_absolute() or PureWindowsPath(file_name).is_absolute() or ".." in path.parts
    if leaves and not allow_outside:
        return "file_name that leads outside the image folder (DATASETS.ALLOW_OUTSIDE True allows it)"
    return ""


def _identity_problem(annotation: dict[str, Any], ids: Counter, images: dict[int, Any], known: set[int]) -> str:
    if not _is_exact(annotation.get("id")):
        return "annotation without an integer id"
    if ids[annotation["id"]] > 1:
        return "annotation id given twice"
    if not _is_id(annotation.get("image_id")) or annotation["image_id"] not in images:
        return "annotation of an unknown or left-out image_id"
    if not _is_id(annotation.get("category_id")) or annotation["category_id"] not in known:
        return "annotation with an unknown category_id"
    if "bbox" not in annotation:
        return "annotation without bbox"
    if annotation.get("ignore"):
        return "annotation with 'ignore' set, which is not supported (iscrowd 1 marks a region to ignore)"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return "annotation whose iscrowd is neither 0 nor 1"
    return ""


def _box_problem(box: Any, image: dict[str, Any]) -> str:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return "bbox that is not four numbers (x, y, width, height)"
    x, y, width, height = box
    if not _in_bounds(box):
        return "bbox with NaN, infinity or a value of 1e8 or more"
    if width < 0 or height < 0:
        return "bbox with negative width or height"
    # An empty box is harmless (COCO itself has some): it is never trained on and never matched.
    if width and height and (x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0):
        return "bbox wholly outside its image"
    return ""


def _segmentation_problem(annotation: dict[str, Any], image: dict[str, Any], name: str, findings: Findings) -> str:
    """Check and repair the mask in place; gives the problem that remains."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return rle_problem(segmentation, image["height"], image["width"])
    if isinstance(segmentation, list):
        for polygon in segmentation:
            wrong = _polygon_problem(polygon, annotation["bbox"])
            if wrong:
                return wrong
        kept = [polygon for polygon in segmentation if len(polygon) >= 6]
        if len(kept) < len(segmentation):
            findings.add("polygon of fewer than three points", name, repair="polygon removed")
        annotation["segmentation"] = kept
    elif segmentation is not None:
        return "segmentation that is neither polygons nor RLE"
    if not annotation.get("segmentation"):
        annotation.pop("segmentation", None)
    return ""


def _polygon_problem(polygon: Any, box: list[float]) -> str:
    if not isinstance(polygon, list) or len(polygon) % 2:
        return "polygon that is no list of x, y pairs"
    if not polygon:
        return ""
    try:
        # One pass in C over the numbers: NaN and infinity both show in the sum.
        low, high, total = min(polygon), max(polygon), float(sum(polygon))
    except TypeError:
        return "polygon that is no list of x, y pairs"
    except OverflowError:
        low, high, total = 0, 0, math.inf
    if not (math.isfinite(total) and -_MAX_COORDINATE < low <= high < _MAX_COORDINATE):
        return "polygon with NaN, infinity or a coordinate of 1e8 or more"
    enlarged = max(1.0, _MASK_SIDE / max(_MIN_SIDE, min(box[2:])))
    # The first product is a bound on the outline's length that costs nothing.
    if len(polygon) * (high - low) * enlarged > _MAX_OUTLINE and _outline(polygon) * enlarged > _MAX_OUTLINE:
        return "polygon whose outline is too long to draw: it leaves its image, or its box is far too small"
    return ""


def _outline(polygon: list[float]) -> float:
    """Length in pixels, counting the longer of an edge's width and height."""
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _complete(annotation: dict[str, Any], name: str, findings: Findings) -> None:
    if "iscrowd" not in annotation:
        findings.add("annotation without iscrowd", name, repair="taken as 0")
    annotation["iscrowd"] = int(annotation.get("iscrowd", 0))
    area: Any = annotation.get("area")
    if not _is_number(area) or not 0 <= area < _MAX_COORDINATE**2:
        findings.add("annotation without a usable area", name, repair="computed from its mask or box")
        annotation["area"] = _area(annotation)


def _note_box(box: list[float], image: dict[str, Any], name: str, findings: Findings) -> None:
    x, y, width, height = box
    if not width or not height:
        findings.add("empty bbox", name, repair="not trained on")
    elif min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        findings.add("bbox that reaches out of its image by more than a pixel", name, repair="cut there in training")


def _area(annotation: dict[str, Any]) -> float:
    """Area in square pixels of the mask, or of the box where there is none."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return float(areas([segmentation])[0])
    if segmentation:
        corners = [(np.array(polygon[::2]), np.array(polygon[1::2])) for polygon in segmentation]
        return float(sum(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 for x, y in corners))
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def _usable(
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    findings: Findings,
) -> None:
    for what, items in (("image", images), ("category", categories), ("annotation", annotations)):
        if not items:
            findings.add(f"no {what} that can be used", "the data set is empty", fatal=True)
            return
    single = [annotation for annotation in annotations if not annotation["iscrowd"]]
    if not single:
        findings.add("no object but crowd regions", f"all {len(annotations)} annotations", fatal=True)
    elif not any(annotation["bbox"][2] > 0 and annotation["bbox"][3] > 0 for annotation in single):
        findings.add("no box that is not empty", f"all {len(single)} annotations", fatal=True)


def _name(what: str, entry: Any, place: int) -> str:
    """An entry of a list by its id, or where it has none to speak of, by its place, from 0."""
    if not isinstance(entry, dict) or "id" not in entry:
        return f"{what} number {place}"
    shown = repr(entry["id"])
    return f"{what} {shown if len(shown) <= _LONGEST_ID else f'number {place}'}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not UNPRINTABLE.search(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_exact(value: Any) -> bool:
    return _is_int(value) and abs(value) <= _MAX_ID


def _is_id(value: Any) -> bool:
    """Of an image or category; an annotation's may be negative, since it is numbered anew."""
    return _is_exact(value) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _in_bounds(values: list[float]) -> bool:
    return all(-_MAX_COORDINATE < value < _MAX_COORDINATE for value in values)  # false for NaN
