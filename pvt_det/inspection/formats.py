"""Data sets in other formats than COCO's, turned into it: Pascal VOC and CVAT by hotcoco, YOLO by `yolo`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hotcoco import COCO

from pvt_det.data.coco.findings import Findings
from pvt_det.data.images import read_header
from pvt_det.errors import DataError
from pvt_det.inspection.voc import (
    folder_of,
    is_folder_of_lists,
    is_list,
    refuse_folder_above,
    take_listed,
    voc_files,
)
from pvt_det.inspection.yolo import CLASS_FILES, read_yolo
from pvt_det.utils.paths import make_folder

COCO_FORMAT, VOC_FORMAT = "COCO", "Pascal VOC"


def format_of(source: Path) -> str:
    """The format of a data set: "COCO", "CVAT", "Pascal VOC" or "YOLO".

    Args:
        source: COCO's json or CVAT's xml file; a folder of Pascal VOC's xml or YOLO's txt files; a list of Pascal VOC's
            `ImageSets`.

    Raises:
        DataError: it is missing, or nothing of these.
    """
    if is_list(source):
        return VOC_FORMAT
    if source.is_file():
        if source.suffix.lower() in (".json", ".xml"):
            return COCO_FORMAT if source.suffix.lower() == ".json" else "CVAT"
        hint = ": give the folder of the label files; it is found beside them" if source.name in CLASS_FILES else ""
        raise DataError(f"{source} is no annotation file that can be read{hint or '; expected .json or .xml'}")
    if not source.is_dir():
        raise DataError(f"{source} does not exist; expected an annotation file, or a folder of them")
    if voc_files(source):
        return VOC_FORMAT
    if is_folder_of_lists(source):
        raise DataError(f"{source} has lists of images: give one of them, such as train.txt, or the folder above")
    if any(source.rglob("*.txt")):
        return "YOLO"
    files = ", ".join(str(path) for path in sorted(source.glob("*.json"))[:3])
    hint = f"; to read COCO's json, name the file: {files}" if files else ""
    raise DataError(f"folder {source} has neither Pascal VOC's .xml files nor YOLO's .txt files{hint}")


def to_coco(source: Path, image_root: Path, json_file: Path, findings: Findings, classes: Sequence[str] = ()) -> None:
    """Write a data set of another format as COCO's json.

    Args:
        source: as in `format_of`, but not COCO's.
        image_root: the folder of its images.
        json_file: where to write.
        findings: takes what cannot be turned; the rest is written.
        classes: of the data set that this one belongs to. Pascal VOC names only classes that occur, so that a small
            part lacks some; where all of its own are among these, it gets these, in their order.

    Raises:
        DataError: the annotations cannot be read.
    """
    kind = format_of(source)
    if kind == "YOLO":
        content = read_yolo(source, image_root, findings)
    else:
        if kind == VOC_FORMAT:
            refuse_folder_above(image_root)
        content = (_read_cvat if kind == "CVAT" else _read_voc)(source, findings)
        _fill_in_sizes(content["images"], image_root, findings)
    _take_classes(content, classes)
    make_folder(json_file.parent)
    json_file.write_text(json.dumps(content), encoding="utf-8")


def _take_classes(content: dict[str, Any], classes: Sequence[str]) -> None:
    names = {category["id"]: category["name"] for category in content["categories"]}
    if not set(names.values()) < set(classes):
        return
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    numbers = {category["name"]: category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        annotation["category_id"] = numbers[names[annotation["category_id"]]]


def _read_voc(source: Path, findings: Findings) -> dict[str, Any]:
    folder = folder_of(source)
    for path in voc_files(folder):
        _refuse_entities(path)
    # Of all files, so that the splits have the same classes.
    content = _converted(lambda: COCO.from_voc(str(folder)), folder, findings)
    if is_list(source):
        take_listed(content, source, findings)
    return content


def _read_cvat(source: Path, findings: Findings) -> dict[str, Any]:
    _refuse_entities(source)
    return _converted(lambda: COCO.from_cvat(str(source)), source, findings)


def _refuse_entities(path: Path) -> None:
    # hotcoco 1.3 loses what stands before one: "Dog &amp; cat" becomes "cat".
    if b"&" in path.read_bytes():
        raise DataError(f"{path} has a name with an XML entity (&…;), which would be cut: write it without")


def _converted(read: Any, source: Path, findings: Findings) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            content = read().dataset
        except (ValueError, OSError) as error:
            raise DataError(f"{source} cannot be read: {error}") from error
    for warning in caught:
        text = str(warning.message)
        for count, what in re.findall(r"(\d+) (unsupported shape|degenerate polygon)\(s\)", text):
            for _ in range(int(count)):
                findings.add(f"CVAT {what}, which has no box", source.name)
    return content


def _fill_in_sizes(images: list[dict[str, Any]], image_root: Path, findings: Findings) -> None:
    for image in images:
        if image["width"] and image["height"]:
            continue
        try:
            image["width"], image["height"] = read_header(image_root / image["file_name"])
        except DataError:
            continue  # the check of the images tells
        findings.add("image without a size", f"image {image['id']}", repair="taken from its file")
