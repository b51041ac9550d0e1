"""Recognize annotation formats by their files, and find the folders of images and labels that belong together.

A Pascal VOC image list is `ROOT/ImageSets/Main/NAME.txt`. It names files in `ROOT/Annotations/`, without extension, one
per line. The list of a single class (`cat_train.txt`) names the same images, with 1, 0 or -1 in a second column. YOLO's
lists name image files by their paths.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pvt_det.data.images import IMAGE_SUFFIXES
from pvt_det.errors import DataError
from pvt_det.utils.paths import folder_fault, similar_path
from pvt_det.utils.plain_yaml import read_text
from pvt_det.utils.text import counted, listed

COCO_FORMAT, VOC_FORMAT, YOLO_FORMAT, CVAT_FORMAT = "COCO", "Pascal VOC", "YOLO", "CVAT"
LISTS = "ImageSets/Main"
VOC_FOLDER, VOC_IMAGES = "Annotations", "JPEGImages"
YAML_SUFFIXES = (".yaml", ".yml")
# Files with the class names of YOLO, in the label folder or a few levels above it.
CLASS_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names")
# Files and folders that a search looks at. It only improves a message or saves an argument, so it must not take long.
_MOST_FILES, _MOST_FOLDERS, _SAMPLE = 200, 500, 50
_LEVELS_UP = 3
_CVAT_ROOT = re.compile(rb"<annotations[\s/>]")


def find_annotations(source: Path) -> tuple[str, Path]:
    """Detect the annotation format of a data set, and find the annotations of an image list.

    Args:
        source: A COCO JSON or CVAT XML file, a folder of Pascal VOC XML or YOLO text files, or an image list of one of
            the two.

    Returns:
        "COCO", "CVAT", "Pascal VOC" or "YOLO", and the annotations: `source` itself, or for an image list the folder of
        the data set (Pascal VOC) or of the label files (YOLO).

    Raises:
        DataError: The source does not exist, has none of these formats, or is a list without annotations near it.
    """
    if source.is_dir():
        if find_voc_files(source):
            return VOC_FORMAT, source
        if _has_label_files(source):
            return YOLO_FORMAT, source
        raise DataError(unknown_folder(source))
    if not source.is_file():
        raise DataError(
            f"{source} does not exist. Expected an annotation file or a folder of annotation files."
            f"{similar_path(source)}"
        )
    suffix = source.suffix.lower()
    if suffix in (".json", ".xml"):
        return COCO_FORMAT if suffix == ".json" else CVAT_FORMAT, source
    if is_image_list(source):
        return _annotations_of_list(source)
    hint = "Expected a .json or .xml file, or a list of images."
    if source.name in CLASS_FILES:
        hint = "Give the folder of the YOLO label files. This file is found from there."
    raise DataError(f"{source} is not an annotation file. {hint}")


def holds_annotations(source: Path) -> bool:
    """Return whether `find_annotations` finds annotations.

    Args:
        source: Any path.
    """
    try:
        find_annotations(source)
    except DataError:
        return False
    return True


def find_voc_files(folder: Path) -> list[Path]:
    """Return the Pascal VOC files of a folder, or of the folder `Annotations` in it, sorted by name.

    Args:
        folder: An existing folder.
    """
    found = sorted((folder / VOC_FOLDER).glob("*.xml")) or sorted(folder.glob("*.xml"))
    return [] if found and is_cvat(found[0]) else found


def is_cvat(path: Path) -> bool:
    """Return whether an XML file looks like one of CVAT, which describes many images.

    Args:
        path: An existing file.
    """
    try:
        with path.open("rb") as file:
            return bool(_CVAT_ROOT.search(file.read(4096)))
    except OSError:
        return False


def _has_label_files(folder: Path) -> bool:
    """Return whether a folder is one of YOLO label files, and not the parent of such a folder."""
    relative = (path.relative_to(folder) for path in folder.rglob("*.txt"))
    names = (path for path in relative if "labels" not in path.parts[:-1] and not _is_about_the_data(path.name))
    found = [_first_words(folder / path) for path in islice(names, _MOST_FILES)]
    return any(map(_is_label, found)) or (bool(found) and not any(found))


def _is_about_the_data(name: str) -> bool:
    return name in CLASS_FILES or name == "labels.txt" or name.lower().startswith(("readme", "license"))


def _first_words(path: Path) -> list[str]:
    """Return the words of the first line of a text file; none if it is empty or cannot be read."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return next((line.split() for line in file if line.strip()), [])
    except (OSError, UnicodeDecodeError):
        return []


def _is_label(words: list[str]) -> bool:
    return len(words) >= 4 and words[0].isdigit()


def is_image_list(path: Path) -> bool:
    """Return whether a text file lists images.

    Args:
        path: Any path.
    """
    if path.suffix.lower() != ".txt" or not path.is_file() or _is_about_the_data(path.name):
        return False
    return not _is_label(_first_words(path))


def _annotations_of_list(path: Path) -> tuple[str, Path]:
    if (images := images_of_list(path)) and _has_label_files(labels_of(images)):
        return YOLO_FORMAT, labels_of(images)
    above = path.absolute().parents[:_LEVELS_UP]
    candidates = [*(folder for folder in above if (folder / VOC_FOLDER).is_dir()), above[0]]
    if found := next(filter(find_voc_files, candidates), None):
        return VOC_FORMAT, found
    names = read_lines(path)
    raise DataError(
        f"{path} is a list of {counted(len(names), 'image')} ({listed(names, 3)}), but no annotations were found for "
        f"it. Expected a folder {VOC_FOLDER} of Pascal VOC files above the list, or a folder labels of YOLO files next "
        "to the folder images. Give the annotations instead: a .json or .xml file, or a folder."
    )


def images_of_list(path: Path) -> Path | None:
    """Return the folder of the images that a list names by their paths.

    Args:
        path: A list of images.

    Returns:
        The folder, or None if the list names no existing files.
    """
    found = [file for name in read_lines(path) if (file := listed_file(path, name)).is_file()]
    return Path(os.path.commonpath([file.parent for file in found])) if found else None


def listed_file(path: Path, name: str) -> Path:
    """Return the file that a line of an image list names.

    Args:
        path: The list.
        name: The line: an absolute path, or one relative to the folder of the list.
    """
    return Path(os.path.normpath(path.absolute().parent / name))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without empty ones and without spaces around them.

    Args:
        path: An existing file.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    return [line.strip() for line in read_text(path, DataError).splitlines() if line.strip()]


def labels_of(images: Path) -> Path:
    """Return the folder of YOLO label files of an image folder: `x/images/y` has `x/labels/y`, or itself.

    Args:
        images: The image folder.
    """
    return _sibling(images, "images", "labels")


def images_of(labels: Path) -> Path:
    """Return the image folder of a folder of YOLO label files, as `labels_of` does the reverse.

    Args:
        labels: The label folder.
    """
    return _sibling(labels, "labels", "images")


def _sibling(folder: Path, name: str, other: str) -> Path:
    parts = list(folder.parts)
    for number in reversed([number for number, part in enumerate(parts) if part == name]):
        found = Path(*parts[:number], other, *parts[number + 1 :])
        if found.is_dir():
            return found
    return folder


def has_images(folder: Path) -> bool:
    """Return whether a folder has image files, in itself or further down.

    Args:
        folder: Any path.
    """
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in islice(folder.rglob("*"), _MOST_FILES))


def are_swapped(annotations: Path, images: Path) -> bool:
    """Return whether an image folder was given as annotations, and annotations as the image folder.

    Args:
        annotations: What was given as annotations.
        images: What was given as the image folder.
    """
    if folder_fault(annotations) or holds_annotations(annotations) or not has_images(annotations):
        return False
    return holds_annotations(images) or images.suffix.lower() in YAML_SUFFIXES


def describe_folder(folder: Path) -> str:
    """Describe what is in a folder: "images/, labels/, 3 .txt files".

    Args:
        folder: An existing folder.
    """
    entries = sorted(folder.iterdir())
    folders = [f"{path.name}/" for path in entries if path.is_dir()]
    suffixes = Counter(path.suffix.lower() for path in entries if path.is_file())
    most = sorted(suffixes.items(), key=lambda found: (-found[1], found[0]))[:4]
    files = [counted(count, f"{suffix} file".strip()) for suffix, count in most]
    return ", ".join([*([listed(folders, 8)] if folders else []), *files]) or "nothing"


def unknown_folder(folder: Path) -> str:
    """Return a message about a folder without annotations, which says what it contains.

    Args:
        folder: An existing folder.
    """
    if any(folder.absolute().match(part) for part in (LISTS, str(Path(LISTS).parent))):
        return f"{folder} contains image lists. Give one of them, such as train.txt, or the folder of the data set."
    files = ", ".join(str(path) for path in sorted(folder.glob("*.json"))[:3])
    hint = f" To read COCO JSON, give the file: {files}" if files else ""
    return (
        f"Folder {folder} contains neither Pascal VOC .xml files nor YOLO .txt files. It contains "
        f"{describe_folder(folder)}.{hint}"
    )


def find_image_folder(names: Sequence[str], near: Path) -> tuple[Path, int] | None:
    """Search a folder, the two above it and the folders below them for image files.

    Args:
        names: File names, relative to the folder to find.
        near: The folder at which the search begins.

    Returns:
        The folder with the most of the files, and their number. None if no folder has any.
    """
    relative = [name for name in names if not Path(name).is_absolute()]
    sample = relative[:: max(1, len(relative) // _SAMPLE)][:_SAMPLE]
    best, most = None, 0
    for folder in islice(_folders_near(near), _MOST_FOLDERS):
        count = sum((folder / name).is_file() for name in sample)
        if count > most:
            best, most = folder, count
        if most == len(sample):
            break
    return (best, sum((best / name).is_file() for name in relative)) if best else None


def _folders_near(folder: Path) -> Iterator[Path]:
    """Return a folder, its folders two levels down, and the same for the two above it, unless they are the root."""
    above = folder.absolute().parents[:2]
    for start in (path for path in (folder, *above) if path.is_dir() and path != Path(path.anchor)):
        yield start
        for pattern in ("*/", "*/*/"):
            yield from (path for path in sorted(start.glob(pattern)) if path.is_dir())
