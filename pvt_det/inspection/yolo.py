"""Read YOLO label files, one text file per image, as COCO annotations.

hotcoco only reads the basic format. Its reader fails on polygons and broken images and ignores subfolders, images
without labels and EXIF rotation, all of which are common.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pvt_det.data.coco.findings import Findings
from pvt_det.data.formats import CLASS_FILES, YAML_SUFFIXES
from pvt_det.data.images import IMAGE_SUFFIXES, read_header
from pvt_det.errors import DataError
from pvt_det.utils.plain_yaml import read_plain_yaml, read_text

# The class names are in the label folder or at most this many levels above it.
_LEVELS_UP = 3


def read_yolo(labels: Path, image_root: Path, findings: Findings, class_file: Path | None = None) -> dict[str, Any]:
    """Read a folder of YOLO label files as COCO annotations.

    A line is `class x y width height` or `class x1 y1 x2 y2 x3 y3 …`, with coordinates normalized by the image size. A
    score at the end, as predictions have it, is left out. An image without a label file has no objects.

    Args:
        labels: Folder of the label files, with the same subfolders as `image_root`.
        image_root: Image folder.
        findings: Collects files and lines that cannot be used.
        class_file: File with the class names. None searches for it in the label folder and above.

    Returns:
        The content of a COCO JSON file with all usable images and objects. `origin` of an image or object is its image
        file, or its line in the label file.

    Raises:
        DataError: The class names or images are missing, or the class names cannot be read.
    """
    names = read_class_names(class_file or _find_class_file(labels))
    images = _images(image_root)
    if not images:
        raise DataError(f"Image folder {image_root} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    label_files = {path.relative_to(labels).with_suffix(""): path for path in sorted(labels.rglob("*.txt"))}
    for stem in label_files.keys() - images.keys():
        if label_files[stem].name not in CLASS_FILES:
            findings.add("label file without an image", str(label_files[stem].relative_to(labels)))
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    for image_id, (stem, path) in enumerate(sorted(images.items()), start=1):
        try:
            width, height = read_header(path)
        except DataError as error:
            findings.add("image file that cannot be used", str(error))
            continue
        image = {"id": image_id, "file_name": path.relative_to(image_root).as_posix()}
        content["images"].append(image | {"width": width, "height": height, "origin": image["file_name"]})
        if stem in label_files:
            name = label_files[stem].relative_to(labels).as_posix()
            for found in _objects(label_files[stem], name, len(names), (width, height), findings):
                annotation_id = len(content["annotations"]) + 1
                content["annotations"].append({"id": annotation_id, "image_id": image_id, "iscrowd": 0, **found})
    return content


def _find_class_file(labels: Path) -> Path:
    folders = [labels, *labels.resolve().parents[:_LEVELS_UP]]
    for path in (folder / name for folder in folders for name in CLASS_FILES):
        if path.is_file():
            return path
    raise DataError(
        f"Folder {labels} has no class names. Add data.yaml (names: [cat, dog]) or classes.txt (one name per line)."
    )


def read_class_names(path: Path) -> list[str]:
    """Read the class names of a YOLO data set.

    Args:
        path: A YAML file with `names`, or a text file with one name per line.

    Returns:
        The names, in the order of the class numbers.

    Raises:
        DataError: The file cannot be read or has no names.
    """
    if path.suffix not in YAML_SUFFIXES:
        return [line.strip() for line in read_text(path, DataError).splitlines() if line.strip()]
    content = read_plain_yaml(path, DataError, keys=(str, int))
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(
            f"{path} has no `names`. Expected a list of class names, or a mapping from numbers (0, 1, …) to names."
        )
    for number, name in enumerate(names):
        # YAML converts yes, null, 1.10 and 2020-01-01 to other types.
        if type(name) not in (str, int) or not str(name).strip():
            raise DataError(f"{path}: names: class {number} is {name!r}. Expected a name. Put it in quotes.")
    return [str(name) for name in names]


def _images(root: Path) -> dict[Path, Path]:
    if not root.is_dir():
        raise DataError(f"Image folder {root} does not exist.")
    found = (path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES)
    return {path.relative_to(root).with_suffix(""): path for path in found}


def _objects(
    path: Path, shown: str, classes: int, size: tuple[int, int], findings: Findings
) -> Iterator[dict[str, Any]]:
    try:
        lines = read_text(path, DataError).splitlines()
    except DataError as error:
        findings.add("label file that cannot be read", str(error))
        return
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        problem, origin = _problem(words, classes), f"{shown}, line {number}"
        if problem:
            findings.add(f"label line {problem}", origin)
            continue
        if len(words) % 2 == 0:
            findings.add("label line with a score", origin, repair="read as a label without it")
        coordinates = [float(word) for word in words[1 : 1 + (len(words) - 1) // 2 * 2]]
        yield {"category_id": int(words[0]), "origin": origin, **_shape(coordinates, size)}


def _problem(words: list[str], classes: int) -> str:
    # An even number of words: with a score.
    if len(words) < 5:
        return "that is neither a box (5 numbers) nor a polygon (7 or more, an odd number)"
    if not words[0].isascii() or not words[0].isdigit() or int(words[0]) >= classes:
        return f"whose class is not one of 0 to {classes - 1}"
    try:
        coordinates = [float(word) for word in words[1:]]
    except ValueError:
        return "with a value that is not a number"
    if len(words) % 2 == 0 and not 0 <= coordinates.pop() <= 1:
        return "whose last value is not a score (0 to 1)"
    if not all(math.isfinite(value) and -1 <= value <= 2 for value in coordinates):
        return "with coordinates that are not normalized by the image size (0 to 1)"
    return ""


def _shape(values: list[float], size: tuple[int, int]) -> dict[str, Any]:
    width, height = size
    if len(values) == 4:
        x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
        return {"bbox": [x - w / 2, y - h / 2, w, h], "area": w * h}
    xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
    twice_area = sum(x1 * y2 - x2 * y1 for x1, y1, x2, y2 in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True))
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"bbox": box, "area": abs(twice_area) / 2, "segmentation": [polygon]}
