"""Inspect a data set: check it as training would, describe it, and collect advice on what to review."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import COCO

from pvt_det.data.coco.annotations import CocoData, entry_name, read_json
from pvt_det.data.coco.check import examine
from pvt_det.data.coco.findings import Findings
from pvt_det.data.formats import COCO_FORMAT, LISTS, VOC_FORMAT, find_annotations
from pvt_det.inspection.files import FileFacts, read_facts, same_files, shared_images
from pvt_det.inspection.formats import find_image_lists, to_coco
from pvt_det.inspection.statistics import Statistics, describe
from pvt_det.utils.files import write_atomically

# Our descriptions of the hotcoco health check's codes. Its other codes are covered by our own check.
_QUALITY = {
    "near_duplicate": "objects of the same class with nearly identical boxes, perhaps one object annotated twice",
    "extreme_aspect_ratio": "boxes more than 20 times as long as wide",
    "zero_area": "objects with area 0",
}
_DIFFERENT_CLASSES = "different classes than in {} (names in the order of their ids)"
_FEW = 10
NORMALIZED_BOXES = (
    "boxes that look normalized by the image size (0 to 1); COCO boxes are in pixels: multiply x and width by the "
    "image width, y and height by the image height"
)
CORNER_BOXES = (
    "boxes that look like corners (x1, y1, x2, y2), because most exceed their image as COCO's x, y, width, height; "
    "replace x2 and y2 with x2 - x1 and y2 - y1"
)
# Fractions of the boxes. A few boxes of a correct data set can look normalized or like corners by chance.
_NEARLY_ALL, _MOST = 0.95, 0.5
_TOLERANCE = 1  # pixels by which annotation tools round


@dataclass(frozen=True)
class Advice:
    """Something in a data set that training accepts, but that should be reviewed.

    Attributes:
        text: Description without the count.
        count: Number of affected images, objects or classes.
        images: Ids of affected images.
        annotations: Ids of affected annotations.
        names: Names of affected classes, files or annotations. Identical files are in one name, "a.jpg = b.jpg".
    """

    text: str
    count: int
    images: list[int] = field(default_factory=list)
    annotations: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """Result of inspecting a data set.

    Attributes:
        source: The annotation file or folder that was inspected.
        format: "COCO", "YOLO", "Pascal VOC" or "CVAT".
        json_file: COCO JSON file of the annotations: `source` itself, or the file for converted annotations. Those that
            were not written to a file are gone after the inspection.
        image_root: Image folder.
        data: The valid annotations and images.
        findings: Problems and how training handles them.
        statistics: Statistics of `data`.
        advice: What else to review.
        images: COCO image records by id, including those with a broken file.
        facts: Facts about the image files by image id.
    """

    source: Path
    format: str
    json_file: Path
    image_root: Path
    data: CocoData
    findings: Findings
    statistics: Statistics
    advice: list[Advice]
    images: dict[int, dict[str, Any]]
    facts: dict[int, FileFacts]

    @cached_property
    def all_annotations(self) -> dict[int, dict[str, Any]]:
        """The unchanged annotations of the file by id, including invalid ones."""
        return _by_id(read_json(self.json_file)["annotations"])

    @property
    def class_names(self) -> list[str]:
        """The class names, by class index."""
        return self.data.class_names

    @property
    def is_converted(self) -> bool:
        """Whether `json_file` was converted from another format."""
        return self.json_file != self.source

    def saved_as(self, path: Path | None) -> Inspection:
        """Move the converted annotations to a file.

        Args:
            path: The file to write or replace. None, and annotations that were not converted, change nothing.

        Returns:
            The inspection with the new `json_file`.
        """
        if path is None or not self.is_converted:
            return self
        write_atomically(path, self.json_file.read_bytes())
        return replace(self, json_file=path)

    def is_refused(self, on_error: str) -> bool:
        """Whether training refuses the data.

        Args:
            on_error: Value of DATASETS.ON_ERROR. "strict" also refuses data with any advice.
        """
        return self.findings.refused(on_error) or (on_error == "strict" and bool(self.advice))


def inspect_dataset(
    source: Path,
    image_root: Path,
    json_file: Path,
    *,
    level: str = "fast",
    masks: bool = False,
    allow_outside: bool = False,
    perceptual_hashes: bool = False,
    classes: Sequence[str] = (),
    classes_of: str = "the training data",
    class_file: Path | None = None,
) -> Inspection:
    """Read a data set in any supported format, check it as training would, and describe it.

    Args:
        source: A COCO JSON or CVAT XML file, a folder of Pascal VOC XML or YOLO text files, or an image list of one of
            the two.
        image_root: Image folder.
        json_file: COCO JSON file to write if the annotations have a different format.
        level: How the image files are checked, a value of DATASETS.CHECK.
        masks: Whether every object needs a mask.
        allow_outside: Whether file names may point outside `image_root`.
        perceptual_hashes: Whether to compute perceptual hashes, which `find_leakage` needs to find similar images.
        classes: Class names that the data must have, in order, if this is not training data. Empty for any.
        classes_of: What `classes` belong to, for messages.
        class_file: File with the class names of YOLO. None searches for it in the label folder and above.

    Raises:
        DataError: The annotations cannot be read at all.
    """
    findings = Findings()
    kind, _ = find_annotations(source)
    if kind == COCO_FORMAT:
        json_file = source
    else:
        to_coco(source, image_root, json_file, findings, classes, class_file)
    examined = examine(json_file, image_root, level, findings, masks=masks, allow_outside=allow_outside)
    data = examined.usable
    if classes and data.class_names != list(classes):
        findings.add(_DIFFERENT_CLASSES.format(classes_of), _difference(classes, data.class_names), fatal=True)
    facts = read_facts(
        {image["id"]: image_root / image["file_name"] for image in data.images}, perceptual_hashes=perceptual_hashes
    )
    statistics, suspects = describe(data), suspect_boxes(data)
    return Inspection(
        source=source,
        format=kind,
        json_file=json_file,
        image_root=image_root,
        data=data,
        findings=findings,
        statistics=statistics,
        advice=[
            *_unused_lists(source, kind),
            *([_object_advice(*suspects)] if suspects else []),
            *_quality(data),
            *_balance(statistics),
            *_files(data, facts),
        ],
        images=_by_id(examined.data.images),
        facts=facts,
    )


def _difference(train: Sequence[str], val: Sequence[str]) -> str:
    missing, extra = [[n for n in a if n not in b] for a, b in ((train, val), (val, train))]
    parts = [f"{word} {', '.join(names)}" for word, names in (("without", missing), ("with", extra)) if names]
    return " and ".join(parts) or "in a different order"


def find_leakage(train: Inspection, val: Inspection) -> list[Advice]:
    """Find validation images that are also training images, and classes that are missing from the validation data.

    Args:
        train: Inspection of the training data.
        val: Inspection of the validation data.

    Returns:
        Advice with the image ids of the validation data.
    """
    pairs = shared_images(train.facts, val.facts)
    found = []
    for is_same, text in (
        (True, "images that are also in the training data"),
        (False, "images that look like a training image"),
    ):
        ids = {val_id: train_id for train_id, val_id, same in pairs if same == is_same}
        sign = "=" if is_same else "~"
        files = [f"{val.images[v]['file_name']} {sign} {train.images[t]['file_name']}" for v, t in ids.items()]
        if ids:
            found.append(Advice(text, len(ids), images=list(ids), names=files))
    seen = {c.name for c in val.statistics.classes if c.objects}
    missing = [c.name for c in train.statistics.classes if c.objects and c.name not in seen]
    if missing:
        found.append(Advice("training classes without objects in the validation data", len(missing), names=missing))
    return found


def _by_id(items: Iterable[Any]) -> dict[int, dict[str, Any]]:
    return {item["id"]: item for item in items if isinstance(item, dict) and isinstance(item.get("id"), int)}


def _unused_lists(source: Path, kind: str) -> list[Advice]:
    names = [path.name for path in find_image_lists(source)] if kind == VOC_FORMAT and source.is_dir() else []
    if not names:
        return []
    text = (
        f"image lists in {source / LISTS} are not used, because the whole folder was given: to use a split, give its "
        "list, and another one to --val-json"
    )
    return [Advice(text, len(names), names=names)]


def suspect_boxes(data: CocoData) -> tuple[str, list[dict[str, Any]]] | None:
    """Detect boxes that are probably not x, y, width and height in pixels.

    Args:
        data: A checked data set.

    Returns:
        `NORMALIZED_BOXES` or `CORNER_BOXES` and the annotations that show it, or None if the boxes look right.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in data.images}
    nonempty = [a for a in data.annotations if a["bbox"][2] > 0 and a["bbox"][3] > 0]
    if not nonempty:
        return None
    boxes = np.array([a["bbox"] for a in nonempty], dtype=np.float64)
    images = np.array([sizes[a["image_id"]] for a in nonempty], dtype=np.float64)
    normalized = ((boxes >= 0) & (boxes <= 1)).all(axis=1)
    if normalized.mean() >= _NEARLY_ALL:
        return NORMALIZED_BOXES, [nonempty[number] for number in np.flatnonzero(normalized)]
    start, end = boxes[:, :2], boxes[:, 2:]
    exceeds = (start + end > images + _TOLERANCE).any(axis=1)
    fits = ((start >= -_TOLERANCE) & (end > start) & (end <= images + _TOLERANCE)).all(axis=1)
    if exceeds.mean() > _MOST and fits.mean() >= _NEARLY_ALL:
        return CORNER_BOXES, [nonempty[number] for number in np.flatnonzero(fits)]
    return None


def _object_advice(text: str, annotations: list[dict[str, Any]]) -> Advice:
    images, ids = [a["image_id"] for a in annotations], [a["id"] for a in annotations]
    return Advice(text, len(ids), images, ids, [entry_name("annotation", a, i) for i, a in enumerate(annotations)])


def _quality(data: CocoData) -> list[Advice]:
    """Return the findings of hotcoco's health check about annotation quality."""
    if not data.annotations:
        return []
    report = COCO(_numbered(data)).healthcheck()
    found = []
    for item in (*report["errors"], *report["warnings"]):
        if item["code"] in _QUALITY:
            affected = [data.annotations[number] for number in item["affected_ids"]]
            found.append(_object_advice(_QUALITY[item["code"]], affected))
    return found


def _numbered(data: CocoData) -> dict[str, Any]:
    """Return the data with indices as ids and only the keys that the check reads: it refuses some ids and values."""
    indices = [{item["id"]: index for index, item in enumerate(items)} for items in (data.images, data.categories)]
    boxes = [
        {
            "id": number,
            "image_id": indices[0][a["image_id"]],
            "category_id": indices[1][a["category_id"]],
            **{key: a[key] for key in ("bbox", "area", "iscrowd")},
        }
        for number, a in enumerate(data.annotations)
    ]
    images = [
        {"id": number, "file_name": "", "width": i["width"], "height": i["height"]}
        for number, i in enumerate(data.images)
    ]
    return {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": number, "name": c["name"]} for number, c in enumerate(data.categories)],
    }


def _balance(statistics: Statistics) -> list[Advice]:
    found = []
    for text, names in (
        ("classes without objects", [c.name for c in statistics.classes if not c.objects]),
        (f"classes with fewer than {_FEW} objects", [c.name for c in statistics.classes if 0 < c.objects < _FEW]),
    ):
        if names:
            found.append(Advice(text, len(names), names=names))
    return found


def _files(data: CocoData, facts: dict[int, FileFacts]) -> list[Advice]:
    names = {image["id"]: image["file_name"] for image in data.images}
    found = []
    if rotated := [image_id for image_id, fact in facts.items() if fact.is_rotated]:
        text = "images rotated by their EXIF tag; boxes must match the rotated image, which most viewers show"
        found.append(Advice(text, len(rotated), images=rotated, names=[names[i] for i in rotated]))
    if groups := same_files(facts):
        same = [" = ".join(names[image_id] for image_id in group) for group in groups]
        count = sum(map(len, groups))
        found.append(Advice("images with identical files", count, images=[group[0] for group in groups], names=same))
    return found
