"""Read Pascal VOC files, one XML file per image, as COCO annotations.

hotcoco's reader stops at the first broken file, and does not say where an object comes from, so we have our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree.ElementTree import Element

from pvt_det.data.coco.findings import Findings
from pvt_det.data.formats import find_voc_files, read_lines
from pvt_det.data.images import IMAGE_SUFFIXES
from pvt_det.errors import DataError
from pvt_det.inspection.coco_content import coco_content
from pvt_det.utils.plain_xml import line_of, read_plain_xml

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(folder: Path, image_root: Path, findings: Findings) -> dict[str, Any]:
    """Read a folder of Pascal VOC files as COCO annotations.

    Pixels are counted from 1, and the last ones belong to the box, as in the VOC development kit and Detectron2: the
    box is `xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1`. A difficult object becomes a crowd region. Classes
    are in the order of `labels.txt` in the folder, if there is one, and otherwise sorted by name.

    Args:
        folder: Folder of XML files, or the folder of a data set with a folder `Annotations`.
        image_root: The image folder.
        findings: Collects files and objects that cannot be used.

    Returns:
        The content of a COCO JSON file with all usable images and objects. `origin` of an image or object is its place
        in the XML files.
    """
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    names = _FileNames(image_root)
    for path in find_voc_files(folder):
        try:
            root = read_plain_xml(path, DataError)
        except DataError as error:
            findings.add("annotation file that cannot be read", str(error))
            continue
        image = {"id": len(images) + 1, "file_name": names.find(root, path, findings), "origin": path.name}
        images.append(image | {side: _size(root, side) for side in ("width", "height")})
        objects += ({"image_id": image["id"], **found} for found in _objects(root, path.name, findings))
    classes = _class_names(folder, {found["name"] for found in objects})
    return coco_content(images, objects, classes)


def _class_names(folder: Path, used: set[str]) -> list[str]:
    file = folder / "labels.txt"
    listed = list(dict.fromkeys(read_lines(file))) if file.is_file() else []
    return [*listed, *sorted(used - set(listed))]


def _text(element: Element | None, path: str) -> str:
    return (element.findtext(path) or "").strip() if element is not None else ""


def _size(root: Element, side: str) -> int:
    """Return the width or height, or 0 if the file does not have it."""
    try:
        return max(0, round(float(_text(root, f"size/{side}"))))
    except (ValueError, OverflowError):
        return 0


def _objects(root: Element, file: str, findings: Findings) -> Iterator[dict[str, Any]]:
    for element in root.iterfind("object"):
        origin = f"{file}, line {line_of(element)}"
        name, box = _text(element, "name"), element.find("bndbox")
        try:
            x1, y1, x2, y2 = (float(_text(box, corner)) for corner in _CORNERS)
        except ValueError:
            findings.add(f"object without a box of four numbers ({', '.join(_CORNERS)})", origin)
            continue
        if not name:
            findings.add("object without a name", origin)
            continue
        width, height = x2 - x1 + 1, y2 - y1 + 1
        is_difficult = _text(element, "difficult") == "1"
        yield {
            "name": name,
            "bbox": [x1 - 1, y1 - 1, width, height],
            "area": abs(width * height),
            "iscrowd": int(is_difficult),
            "origin": origin,
        }


class _FileNames:
    """Finds image files by what an XML file says, or by the name of the XML file if that is wrong."""

    def __init__(self, image_root: Path) -> None:
        self._root = image_root

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        if not self._root.is_dir():
            return {}
        files = sorted(path for path in self._root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        return {path.stem: path.name for path in files}

    def find(self, root: Element, path: Path, findings: Findings) -> str:
        """Return the image file of an XML file, relative to the image folder.

        Args:
            root: Root element of the XML file.
            path: The XML file.
            findings: Collects names of files that do not exist.
        """
        stated = _text(root, "filename")
        name = PureWindowsPath(stated).name  # also splits at "/"
        for candidate in dict.fromkeys((stated, name)):
            if candidate and (self._root / candidate).is_file():
                return candidate
        found = self._by_stem.get(path.stem)
        if found is None:
            return name or f"{path.stem}.jpg"
        offender = f"{path.name}: {stated}" if stated else path.name
        repair = "image with the name of the XML file used"
        findings.add("<filename> that does not exist in the image folder", offender, repair=repair)
        return found
