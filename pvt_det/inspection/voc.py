"""Pascal VOC's folders: xml files, read by hotcoco, and lists of images, which tell what a split has.

A list is `ROOT/ImageSets/Main/NAME.txt`, the images' names without ending, one a line, of the files in
`ROOT/Annotations/`. Those of a class (`cat_train.txt`) have a second column, of 1, 0 or -1, and list the same images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pvt_det.data.coco.findings import Findings
from pvt_det.errors import DataError

LISTS = "ImageSets/Main"
_IMAGES = "JPEGImages"


def voc_files(folder: Path) -> list[Path]:
    """The xml files of a folder."""
    return list((folder / "Annotations").glob("*.xml")) or list(folder.glob("*.xml"))


def folder_of(source: Path) -> Path:
    """The folder of a data set that is given as one, or as one of its lists."""
    return source.absolute().parents[2] if is_list(source) else source


def is_list(source: Path) -> bool:
    """Whether a file is a list of images beside a folder of annotations."""
    path = source.absolute()
    at_place = path.suffix == ".txt" and path.parent.match(LISTS)
    return at_place and path.is_file() and (path.parents[2] / "Annotations").is_dir()


def is_folder_of_lists(source: Path) -> bool:
    """Whether a folder is that of the lists, or the one above it."""
    return source.absolute().match(LISTS) or source.absolute().match(str(Path(LISTS).parent))


def lists(folder: Path) -> list[Path]:
    """The lists of a data set's folder, without those of one class."""
    return [path for path in sorted((folder / LISTS).glob("*.txt")) if not _is_of_class(_lines(path)[:1])]


def refuse_folder_above(image_root: Path) -> None:
    """Check that a folder of images is not the data set's, with the images in one below.

    Raises:
        DataError: It is.
    """
    below = image_root / _IMAGES
    if below.is_dir():
        raise DataError(f"{image_root} is not the folder of the images: give {below}")


def take_listed(content: dict[str, Any], source: Path, findings: Findings) -> None:
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
            f"{', '.join(path.name for path in lists(folder_of(source))) or 'train.txt'}"
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
