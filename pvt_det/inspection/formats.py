"""Convert Pascal VOC, CVAT and YOLO data sets to COCO JSON, with hotcoco and `pvt_det.inspection.yolo`.

A Pascal VOC image list is `ROOT/ImageSets/Main/NAME.txt`. It names files in `ROOT/Annotations/`, without extension, one
per line. The list of a single class (`cat_train.txt`) names the same images, with 1, 0 or -1 in a second column.
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


def detect_format(source: Path) -> str:
    """Detect the annotation format of a data set.

    Args:
        source: A COCO JSON or CVAT XML file, a folder of Pascal VOC XML or YOLO text files, or an image list of Pascal
            VOC.

    Returns:
        "COCO", "CVAT", "Pascal VOC" or "YOLO".

    Raises:
        DataError: The source does not exist, or has none of these formats.
    """
    if _is_list(source):
        return VOC_FORMAT
    if source.is_file():
        if source.suffix.lower() in (".json", ".xml"):
            return COCO_FORMAT if source.suffix.lower() == ".json" else "CVAT"
        hint = (
            "Give the folder of the YOLO label files. This file is found from there."
            if source.name in CLASS_FILES
            else ""
        )
        raise DataError(f"{source} is not an annotation file. {hint or 'Expected a .json or .xml file.'}")
    if not source.is_dir():
        raise DataError(f"{source} does not exist. Expected an annotation file or a folder of annotation files.")
    if _voc_files(source):
        return VOC_FORMAT
    if any(source.absolute().match(part) for part in (LISTS, str(Path(LISTS).parent))):
        raise DataError(
            f"{source} contains image lists. Give one of them, such as train.txt, or the folder of the data set."
        )
    if any(source.rglob("*.txt")):
        return "YOLO"
    files = ", ".join(str(path) for path in sorted(source.glob("*.json"))[:3])
    hint = f" To read COCO JSON, give the file: {files}" if files else ""
    raise DataError(f"Folder {source} contains neither Pascal VOC .xml files nor YOLO .txt files.{hint}")


def to_coco(source: Path, image_root: Path, json_file: Path, findings: Findings, classes: Sequence[str] = ()) -> None:
    """Convert Pascal VOC, CVAT or YOLO annotations to a COCO JSON file.

    Args:
        source: A CVAT XML file, a folder of Pascal VOC XML or YOLO text files, or an image list of Pascal VOC.
        image_root: The image folder.
        json_file: The COCO JSON file to write.
        findings: Collects the annotations that cannot be converted. All others are written.
        classes: Class names of the training data, in order. Pascal VOC files only name classes that occur, so a small
            split may lack some. A data set whose classes are all among these gets these classes, in this order.

    Raises:
        DataError: The annotations cannot be read, or the Pascal VOC images are in a subfolder of `image_root`.
    """
    kind = detect_format(source)
    if kind == "YOLO":
        content = read_yolo(source, image_root, findings)
    else:
        below = image_root / _IMAGES
        if kind == VOC_FORMAT and below.is_dir():
            raise DataError(f"{image_root} is not the image folder. Give {below} instead.")
        content = (_read_cvat if kind == "CVAT" else _read_voc)(source, findings)
        _fill_in_sizes(content["images"], image_root, findings)
    _use_classes(content, classes)
    make_folder(json_file.parent)
    json_file.write_text(json.dumps(content), encoding="utf-8")


def _use_classes(content: dict[str, Any], classes: Sequence[str]) -> None:
    names = {category["id"]: category["name"] for category in content["categories"]}
    if not set(names.values()) < set(classes):
        return
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    numbers = {category["name"]: category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        annotation["category_id"] = numbers[names[annotation["category_id"]]]


def _read_voc(source: Path, findings: Findings) -> dict[str, Any]:
    folder = _dataset_folder(source)
    for path in _voc_files(folder):
        _reject_entities(path)
    # Read all files, so that all splits have the same classes.
    content = _convert(lambda: COCO.from_voc(str(folder)), folder, findings)
    if _is_list(source):
        _keep_listed(content, source, findings)
    return content


def _voc_files(folder: Path) -> list[Path]:
    """Return the XML files of a folder."""
    return list((folder / "Annotations").glob("*.xml")) or list(folder.glob("*.xml"))


def _dataset_folder(source: Path) -> Path:
    """Return the data set folder of a source, which is that folder or one of its image lists."""
    return source.absolute().parents[2] if _is_list(source) else source


def _is_list(source: Path) -> bool:
    """Whether a file is an image list of a Pascal VOC data set."""
    path = source.absolute()
    in_lists_folder = path.suffix == ".txt" and path.parent.match(LISTS)
    return in_lists_folder and path.is_file() and (path.parents[2] / "Annotations").is_dir()


def find_image_lists(folder: Path) -> list[Path]:
    """Find the image lists of a Pascal VOC data set, without the lists of single classes.

    Args:
        folder: The folder of the data set.
    """
    return [path for path in sorted((folder / LISTS).glob("*.txt")) if not _is_class_list(_lines(path)[:1])]


def _keep_listed(content: dict[str, Any], source: Path, findings: Findings) -> None:
    """Remove all images and annotations that are not in an image list from COCO content, in place."""
    names = _lines(source)
    if not names:
        raise DataError(f"{source} does not name any images. Expected image names without extension, one per line.")
    if _is_class_list(names):
        raise DataError(
            f"{source} is the list of a single class. Expected a list of image names only, such as "
            f"{', '.join(path.name for path in find_image_lists(_dataset_folder(source))) or 'train.txt'}"
        )
    by_name = {Path(image["file_name"]).stem: image for image in content["images"]}
    for name in names:
        if name not in by_name:
            findings.add("listed image without an annotation file", name)
    content["images"] = [by_name[name] for name in dict.fromkeys(names) if name in by_name]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in kept]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _is_class_list(lines: list[str]) -> bool:
    return bool(lines) and all(line.split()[1:] in (["1"], ["0"], ["-1"]) for line in lines)


def _read_cvat(source: Path, findings: Findings) -> dict[str, Any]:
    _reject_entities(source)
    return _convert(lambda: COCO.from_cvat(str(source)), source, findings)


def _reject_entities(path: Path) -> None:
    # hotcoco 1.3 drops everything before an entity: "Dog &amp; cat" becomes "cat".
    if b"&" in path.read_bytes():
        raise DataError(
            f"{path} has a name with an XML entity (&…;), which would be truncated. Write the name without it."
        )


def _convert(read: Any, source: Path, findings: Findings) -> dict[str, Any]:
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
            continue  # the image check reports it
        findings.add("image without a size", f"image {image['id']}", repair="read from the image file")
