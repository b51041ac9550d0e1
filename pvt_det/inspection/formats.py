"""Convert Pascal VOC, CVAT and YOLO data sets to COCO JSON.

Every image and object of a converted file has a key `origin`, its place in the original files, by which messages name
it: "000012.xml, line 17".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from pvt_det.data.coco.annotations import entry_name
from pvt_det.data.coco.findings import Findings
from pvt_det.data.formats import (
    COCO_FORMAT,
    CVAT_FORMAT,
    LISTS,
    VOC_FORMAT,
    VOC_IMAGES,
    YOLO_FORMAT,
    find_annotations,
    read_lines,
)
from pvt_det.data.images import IMAGE_SUFFIXES, read_header
from pvt_det.errors import DataError
from pvt_det.inspection.cvat import read_cvat
from pvt_det.inspection.voc import read_voc
from pvt_det.inspection.yolo import read_yolo
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder


def to_coco(
    source: Path,
    image_root: Path,
    json_file: Path,
    findings: Findings,
    classes: Sequence[str] = (),
    class_file: Path | None = None,
) -> None:
    """Convert Pascal VOC, CVAT or YOLO annotations to a COCO JSON file.

    Args:
        source: A CVAT XML file, a folder of Pascal VOC XML or YOLO text files, or an image list of one of the two.
        image_root: The image folder.
        json_file: The COCO JSON file to write.
        findings: Collects the annotations that cannot be converted. All others are written.
        classes: Class names of the training data, in order. Pascal VOC files only name classes that occur, so a small
            split may lack some. A data set whose classes are all among these gets these classes, in this order.
        class_file: File with the class names of YOLO. None searches for it in the label folder and above.

    Raises:
        DataError: The annotations cannot be read, or the Pascal VOC images are in a subfolder of `image_root`.
    """
    kind, folder = find_annotations(source)
    if kind == COCO_FORMAT:
        raise DataError(f"{source} is COCO JSON already. Expected annotations in another format.")
    if kind == VOC_FORMAT and (below := image_root / VOC_IMAGES).is_dir():
        raise DataError(f"{image_root} is not the image folder. Give {below} instead.")
    if kind == YOLO_FORMAT:
        content = read_yolo(folder, image_root, findings, class_file)
    else:
        is_cvat = kind == CVAT_FORMAT
        content = read_cvat(source, findings) if is_cvat else read_voc(folder, image_root, findings)
        _fill_in_sizes(content["images"], image_root, findings)
    if folder != source:
        # All files of the list's folder were read, so that all splits have the same classes.
        _keep_listed(content, source, kind, folder, findings)
    _use_classes(content, classes)
    make_folder(json_file.parent)
    write_atomically(json_file, json.dumps(content))


def _use_classes(content: dict[str, Any], classes: Sequence[str]) -> None:
    names = {category["id"]: category["name"] for category in content["categories"]}
    if not set(names.values()) <= set(classes):
        return
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    numbers = {category["name"]: category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        annotation["category_id"] = numbers[names[annotation["category_id"]]]


def find_image_lists(folder: Path) -> list[Path]:
    """Find the image lists of a Pascal VOC data set, without the lists of single classes.

    Args:
        folder: The folder of the data set.
    """
    return [path for path in sorted((folder / LISTS).glob("*.txt")) if not _is_class_list(read_lines(path)[:1])]


def _keep_listed(content: dict[str, Any], source: Path, kind: str, folder: Path, findings: Findings) -> None:
    """Remove all images and annotations that are not in the image list of a folder from COCO content, in place."""
    names = read_lines(source)
    if not names:
        raise DataError(f"{source} does not name any images. Expected image names without extension, one per line.")
    if _is_class_list(names):
        lists = find_image_lists(folder)
        raise DataError(
            f"{source} is the list of a single class. Expected a list of image names only, such as "
            f"{', '.join(path.name for path in lists) or 'train.txt'}"
        )
    by_name: dict[str, list[dict[str, Any]]] = {}
    key = "origin" if kind == VOC_FORMAT else "file_name"  # Pascal VOC lists the XML files
    for image in content["images"]:
        by_name.setdefault(Path(image[key]).stem, []).append(image)
    listed: dict[int, dict[str, Any]] = {}
    for name in names:
        found = _named(name, by_name)
        listed |= {image["id"]: image for image in found}
        if not found:
            what = "an annotation file" if kind == VOC_FORMAT else "a file"
            findings.add(f"listed image without {what}", name)
    content["images"] = list(listed.values())
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in listed]


def _named(line: str, by_name: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the images that a line of a list names, by a path or by a name without extension."""
    path = PureWindowsPath(line)  # also splits at "/"
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    found = by_name.get(stem, [])
    if len(found) < 2:
        return found
    # Several folders have a file of this name.
    whole = "/" + path.with_name(stem).as_posix()
    return [image for image in found if whole.endswith("/" + Path(image["file_name"]).with_suffix("").as_posix())]


def _is_class_list(lines: list[str]) -> bool:
    return bool(lines) and all(line.split()[1:] in (["1"], ["0"], ["-1"]) for line in lines)


def _fill_in_sizes(images: list[dict[str, Any]], image_root: Path, findings: Findings) -> None:
    for index, image in enumerate(images):
        if image["width"] and image["height"]:
            continue
        try:
            image["width"], image["height"] = read_header(image_root / image["file_name"])
        except DataError:
            continue  # the image check reports it
        findings.add("image without a size", entry_name("image", image, index), repair="read from the image file")
