"""Data sets in other formats than COCO's, turned into it: Pascal VOC and CVAT by hotcoco, YOLO by `yolo`.

A list of Pascal VOC is `ROOT/ImageSets/Main/NAME.txt`, the images' names without ending, one a line, of the files in
`ROOT/Annotations/`. Those of a class (`cat_train.txt`) have a second column, of 1, 0 or -1, and list the same images.
"""

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
from pvt_det.inspection.yolo import CLASS_FILES, read_yolo
from pvt_det.utils.paths import make_folder

COCO_FORMAT, VOC_FORMAT = "COCO", "Pascal VOC"
LISTS = "ImageSets/Main"
_IMAGES = "JPEGImages"


def format_of(source: Path) -> str:
    """The format of a data set: "COCO", "CVAT", "Pascal VOC" or "YOLO".

    Args:
        source: COCO's json or CVAT's xml file; a folder of Pascal VOC's xml or YOLO's txt files; a list of Pascal VOC's
            `ImageSets`.

    Raises:
        DataError: it is missing, or nothing of these.
    """
    if _is_list(source):
        return VOC_FORMAT
    if source.is_file():
        if source.suffix.lower() in (".json", ".xml"):
            return COCO_FORMAT if source.suffix.lower() == ".json" else "CVAT"
        hint = ": give the folder of the label files; it is found beside them" if source.name in CLASS_FILES else ""
        raise DataError(f"{source} is no annotation file that can be read{hint or '; expected .json or .xml'}")
    if not source.is_dir():
        raise DataError(f"{source} does not exist; expected an annotation file, or a folder of them")
    if _voc_files(source):
        return VOC_FORMAT
    if any(source.absolute().match(part) for part in (LISTS, str(Path(LISTS).parent))):
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
        DataError: the annotations cannot be read, or the images of Pascal VOC are in a folder below `image_root`.
    """
    kind = format_of(source)
    if kind == "YOLO":
        content = read_yolo(source, image_root, findings)
    else:
        below = image_root / _IMAGES
        if kind == VOC_FORMAT and below.is_dir():
            raise DataError(f"{image_root} is not the folder of the images: give {below}")
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
    folder = _folder_of(source)
    for path in _voc_files(folder):
        _refuse_entities(path)
    # Of all files, so that the splits have the same classes.
    content = _converted(lambda: COCO.from_voc(str(folder)), folder, findings)
    if _is_list(source):
        _take_listed(content, source, findings)
    return content


def _voc_files(folder: Path) -> list[Path]:
    """The xml files of a folder."""
    return list((folder / "Annotations").glob("*.xml")) or list(folder.glob("*.xml"))


def _folder_of(source: Path) -> Path:
    """The folder of a data set that is given as one, or as one of its lists."""
    return source.absolute().parents[2] if _is_list(source) else source


def _is_list(source: Path) -> bool:
    """Whether a file is a list of images beside a folder of annotations."""
    path = source.absolute()
    at_place = path.suffix == ".txt" and path.parent.match(LISTS)
    return at_place and path.is_file() and (path.parents[2] / "Annotations").is_dir()


def lists(folder: Path) -> list[Path]:
    """The lists of a data set's folder, without those of one class."""
    return [path for path in sorted((folder / LISTS).glob("*.txt")) if not _is_of_class(_lines(path)[:1])]


def _take_listed(content: dict[str, Any], source: Path, findings: Findings) -> None:
    """Keep only what a list names, in COCO's layout, in place.

    Args:
        content: the data of all annotation files.
        source: the list.
        findings: takes names without annotations.

    Raises:
        DataError: it names nothing, or is of one class.
    """
    names = _lines(source)
    if not names:
        raise DataError(f"{source} names no images: expected their names without ending, one a line")
    if _is_of_class(names):
        raise DataError(
            f"{source} tells which images have one class: expected a list of names alone, such as "
            f"{', '.join(path.name for path in lists(_folder_of(source))) or 'train.txt'}"
        )
    there = {Path(image["file_name"]).stem: image for image in content["images"]}
    for name in names:
        if name not in there:
            findings.add("name of the list without an annotation file", name)
    content["images"] = [there[name] for name in dict.fromkeys(names) if name in there]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _is_of_class(lines: list[str]) -> bool:
    return bool(lines) and all(line.split()[1:] in (["1"], ["0"], ["-1"]) for line in lines)


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
