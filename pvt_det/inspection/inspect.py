"""The inspection of a data set: what a training run would make of it, and what its owner should look at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import COCO

from pvt_det.data.coco.annotations import CocoData, read_json
from pvt_det.data.coco.check import examine
from pvt_det.data.coco.findings import Findings
from pvt_det.inspection.files import FileFacts, read_facts, same_files, shared_images
from pvt_det.inspection.formats import COCO_FORMAT, LISTS, VOC_FORMAT, format_of, lists, to_coco
from pvt_det.inspection.statistics import Statistics, describe

# What hotcoco's health check says of annotations, in our words; its other codes are found by our own check.
_QUALITY = {
    "near_duplicate": "objects of one class whose boxes all but coincide, perhaps one annotated twice",
    "extreme_aspect_ratio": "boxes more than 20 times as long as wide",
    "zero_area": "objects of area 0",
}
_OTHER_CLASSES = "classes that are not the training data's, in the same order of their ids"
_FEW = 10
SHARES = (
    "boxes whose values are all from 0 to 1, as shares of the image's sides; COCO's are pixels: multiply x and width "
    "by the image's width, y and height by its height"
)
CORNERS = (
    "boxes that look like corners (x1, y1, x2, y2), since most would leave their images as COCO's x, y, width, height; "
    "write x2 - x1 and y2 - y1 in place of x2 and y2"
)
# Objects in which a set of real pixels may look otherwise by chance.
_NEARLY_ALL, _MOST = 0.95, 0.5
_SLACK = 1  # pixels by which annotation tools round


@dataclass(frozen=True)
class Advice:
    """Something that training accepts and its owner should look at.

    Attributes:
        text: what it is, without the count.
        count: how many images, objects or classes.
        images: ids of images that show it.
        annotations: ids of annotations that are meant.
        names: of classes or files that are meant.
    """

    text: str
    count: int
    images: list[int] = field(default_factory=list)
    annotations: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set.

    Attributes:
        source: where it came from.
        format: "COCO", "YOLO", "Pascal VOC" or "CVAT".
        json_file: its annotations in COCO's format, `source` itself or turned from it.
        image_root: the folder of its images.
        data: its sound part.
        findings: what is wrong, and what becomes of it.
        statistics: of the sound part.
        advice: what else to look at.
        images: by id, those whose file is broken too.
        facts: of the image files, by image id.
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
        """The annotations by id, as they are in the file, wrong ones too."""
        return _by_id(read_json(self.json_file)["annotations"])

    def is_refused(self, on_error: str) -> bool:
        """Whether the data is refused: by training under DATASETS.ON_ERROR; by "strict" for any advice too."""
        return self.findings.refused(on_error) or (on_error == "strict" and bool(self.advice))


def inspect_dataset(
    source: Path,
    image_root: Path,
    json_file: Path,
    *,
    level: str = "fast",
    masks: bool = False,
    allow_outside: bool = False,
    looks: bool = False,
    partner: Inspection | None = None,
) -> Inspection:
    """Read a data set in any known format, check it as training would, and describe it.

    Args:
        source: annotations, see `pvt_det.inspection.formats.format_of`.
        image_root: folder of the images.
        json_file: where annotations of another format are written in COCO's.
        level: of the images' check, see `pvt_det.data.coco.check.examine`.
        masks: masks are needed.
        allow_outside: file names may lead out of `image_root`.
        looks: compare images by their looks too, see `find_leakage`.
        partner: the training data that this is to be evaluated with: the classes must be the same.

    Raises:
        DataError: the annotations cannot be read at all.
    """
    findings = Findings()
    kind = format_of(source)
    if kind == COCO_FORMAT:
        json_file = source
    else:
        to_coco(source, image_root, json_file, findings, partner.data.class_names if partner else ())
    examined = examine(json_file, image_root, level, findings, masks=masks, allow_outside=allow_outside)
    data = examined.usable
    if partner and data.class_names != partner.data.class_names:
        findings.add(_OTHER_CLASSES, _difference(partner.data.class_names, data.class_names), fatal=True)
    facts = read_facts({image["id"]: image_root / image["file_name"] for image in data.images}, looks=looks)
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
            *_lists(source, kind),
            *([_of_objects(*suspects)] if suspects else []),
            *_quality(data),
            *_balance(statistics),
            *_files(data, facts),
        ],
        images=_by_id(examined.data.images),
        facts=facts,
    )


def _difference(ours: list[str], theirs: list[str]) -> str:
    missing, more = [[n for n in a if n not in b] for a, b in ((ours, theirs), (theirs, ours))]
    parts = [f"{word} {', '.join(names)}" for word, names in (("without", missing), ("with", more)) if names]
    return " and ".join(parts) or "in another order"


def find_leakage(train: Inspection, val: Inspection) -> list[Advice]:
    """Images that are in both sets, so that evaluation would tell too much; ids are the second set's."""
    pairs = shared_images(train.facts, val.facts)
    found = []
    for is_same, text in (
        (True, "images that are in the training data too"),
        (False, "images that look like one of the training data"),
    ):
        ids = {theirs: ours for ours, theirs, same in pairs if same == is_same}
        files = [f"{val.images[i]['file_name']} is {train.images[o]['file_name']}" for i, o in ids.items()]
        if ids:
            found.append(Advice(text, len(ids), images=list(ids), names=files))
    seen = {c.name for c in val.statistics.classes if c.objects}
    missing = [c.name for c in train.statistics.classes if c.objects and c.name not in seen]
    if missing:
        found.append(Advice("classes that evaluation never sees", len(missing), names=missing))
    return found


def _by_id(items: Iterable[Any]) -> dict[int, dict[str, Any]]:
    return {item["id"]: item for item in items if isinstance(item, dict) and isinstance(item.get("id"), int)}


def _lists(source: Path, kind: str) -> list[Advice]:
    names = [path.name for path in lists(source)] if kind == VOC_FORMAT and source.is_dir() else []
    if not names:
        return []
    text = (
        f"lists in {source / LISTS} are not followed, since the folder has been named: name one, and one to --val-json"
    )
    return [Advice(text, len(names), names=names)]


def suspect_boxes(data: CocoData) -> tuple[str, list[dict[str, Any]]] | None:
    """What the boxes probably are in place of x, y, width and height in pixels, and the annotations that say so.

    Args:
        data: a checked data set.

    Returns:
        `SHARES` or `CORNERS` with annotations; None where the boxes can be what they should.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in data.images}
    whole = [a for a in data.annotations if a["bbox"][2] > 0 and a["bbox"][3] > 0]
    if not whole:
        return None
    boxes = np.array([a["bbox"] for a in whole], dtype=np.float64)
    images = np.array([sizes[a["image_id"]] for a in whole], dtype=np.float64)
    shares = ((boxes >= 0) & (boxes <= 1)).all(axis=1)
    if shares.mean() >= _NEARLY_ALL:
        return SHARES, [whole[number] for number in np.flatnonzero(shares)]
    start, end = boxes[:, :2], boxes[:, 2:]
    leaves = (start + end > images + _SLACK).any(axis=1)
    fits = ((start >= -_SLACK) & (end > start) & (end <= images + _SLACK)).all(axis=1)
    if leaves.mean() > _MOST and fits.mean() >= _NEARLY_ALL:
        return CORNERS, [whole[number] for number in np.flatnonzero(fits)]
    return None


def _of_objects(text: str, meant: list[dict[str, Any]]) -> Advice:
    return Advice(text, len(meant), [a["image_id"] for a in meant], [a["id"] for a in meant])


def _quality(data: CocoData) -> list[Advice]:
    """The part of hotcoco's health check that concerns quality."""
    if not data.annotations:
        return []
    report = COCO(_numbered(data)).healthcheck()
    found = []
    for item in (*report["errors"], *report["warnings"]):
        if item["code"] in _QUALITY:
            meant = [data.annotations[number] for number in item["affected_ids"]]
            found.append(_of_objects(_QUALITY[item["code"]], meant))
    return found


def _numbered(data: CocoData) -> dict[str, Any]:
    """The data with its places as ids and without what the check does not read: it refuses some ids and odd values."""
    places = [{item["id"]: place for place, item in enumerate(items)} for items in (data.images, data.categories)]
    boxes = [
        {
            "id": number,
            "image_id": places[0][a["image_id"]],
            "category_id": places[1][a["category_id"]],
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
        ("classes without any object", [c.name for c in statistics.classes if not c.objects]),
        (f"classes with fewer than {_FEW} objects", [c.name for c in statistics.classes if 0 < c.objects < _FEW]),
    ):
        if names:
            found.append(Advice(text, len(names), names=names))
    return found


def _files(data: CocoData, facts: dict[int, FileFacts]) -> list[Advice]:
    names = {image["id"]: image["file_name"] for image in data.images}
    turned = [image_id for image_id, fact in facts.items() if fact.is_turned]
    twice = [image_id for group in same_files(facts) for image_id in group]
    found = []
    for text, ids in (
        ("images that their EXIF tag turns; boxes must fit the turned image, as most viewers show it", turned),
        ("images whose files are the same", twice),
    ):
        if ids:
            found.append(Advice(text, len(ids), images=ids, names=[names[i] for i in ids]))
    return found
