"""Read an XML file of CVAT ("CVAT for images 1.1") as COCO annotations.

hotcoco's reader does not say where an object comes from, and what it skips, so we have our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from pvt_det.data.coco.findings import Findings
from pvt_det.errors import DataError
from pvt_det.inspection.coco_content import coco_content
from pvt_det.utils.plain_xml import line_of, read_plain_xml

_CORNERS = ("xtl", "ytl", "xbr", "ybr")


def read_cvat(source: Path, findings: Findings) -> dict[str, Any]:
    """Read an XML file of CVAT as COCO annotations.

    Classes are in the order of the file's list of labels. Without a list, they are sorted by name.

    Args:
        source: The XML file.
        findings: Collects shapes that cannot be used.

    Returns:
        The content of a COCO JSON file with all usable images, boxes and polygons. `origin` of an image or object is
        its line in the XML file.

    Raises:
        DataError: The file cannot be read, or is not one of CVAT.
    """
    root = read_plain_xml(source, DataError)
    if root.tag != "annotations":
        hint = f" It describes one image in Pascal VOC's format. Give the folder: {source.parent}"
        raise DataError(
            f"{source} is not a CVAT file: its root is <{root.tag}>, expected <annotations>."
            + (hint if root.tag == "annotation" else "")
        )
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for element in root.iterfind("image"):
        image = {"id": len(images) + 1, "file_name": element.get("name", ""), "origin": _place(source, element)}
        images.append(image | {side: _size(element, side) for side in ("width", "height")})
        objects += ({"image_id": image["id"], **found} for found in _objects(element, source, findings))
    declared = [(label.text or "").strip() for label in root.iterfind("meta//labels/label/name")]
    names = list(dict.fromkeys([*filter(None, declared), *sorted({found["name"] for found in objects})]))
    return coco_content(images, objects, names)


def _place(source: Path, element: Element) -> str:
    return f"{source.name}, line {line_of(element)}"


def _size(element: Element, side: str) -> int:
    """Return the width or height, or 0 if the file does not have it."""
    value = element.get(side, "")
    return int(value) if value.isascii() and value.isdigit() else 0


def _objects(image: Element, source: Path, findings: Findings) -> Iterator[dict[str, Any]]:
    for element in image:
        place, name = _place(source, element), element.get("label", "").strip()
        if element.tag not in ("box", "polygon"):
            findings.add("CVAT shape that is neither a box nor a polygon", f"{place} ({element.tag})")
            continue
        try:
            shape = _box(element) if element.tag == "box" else _polygon(element)
        except ValueError:
            findings.add(f"CVAT {element.tag} without usable coordinates", place)
            continue
        if not name:
            findings.add("CVAT shape without a label", place)
            continue
        yield {"name": name, "iscrowd": 0, "origin": place, **shape}


def _box(element: Element) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(element.get(corner, "")) for corner in _CORNERS)
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": abs((x2 - x1) * (y2 - y1))}


def _polygon(element: Element) -> dict[str, Any]:
    pairs = [pair.split(",") for pair in element.get("points", "").split(";")]
    points = [(float(x), float(y)) for x, y in pairs]
    if len(points) < 3:
        raise ValueError("fewer than three points")
    xs, ys = zip(*points, strict=True)
    following = [*points[1:], points[0]]
    twice_area = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, following, strict=True))
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"bbox": box, "area": abs(twice_area) / 2, "segmentation": [[value for point in points for value in point]]}
