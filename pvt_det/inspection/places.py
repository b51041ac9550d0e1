"""Find annotations and images in what a user gives: files, folders, a YAML file of YOLO, or a whole data set."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvt_det.data.coco.annotations import read_json
from pvt_det.data.formats import (
    COCO_FORMAT,
    CVAT_FORMAT,
    LISTS,
    VOC_FORMAT,
    VOC_IMAGES,
    YAML_SUFFIXES,
    are_swapped,
    describe_folder,
    find_annotations,
    find_image_folder,
    find_voc_files,
    has_images,
    holds_annotations,
    images_of,
    images_of_list,
    is_cvat,
    labels_of,
    unknown_folder,
)
from pvt_det.errors import DataError
from pvt_det.utils.paths import folder_fault
from pvt_det.utils.plain_xml import read_plain_xml
from pvt_det.utils.plain_yaml import read_plain_yaml
from pvt_det.utils.text import listed

_TRAIN, _VAL = ("train", "training"), ("val", "valid", "validation")


@dataclass(frozen=True)
class Place:
    """Where the annotations and images of a data set are.

    Attributes:
        annotations: A COCO JSON or CVAT XML file, a folder of Pascal VOC or YOLO files, or an image list.
        images: The image folder.
        class_file: YOLO's YAML file with the class names, or None.
    """

    annotations: Path
    images: Path
    class_file: Path | None = None


def find_places(
    annotations: Path, images: Path | None, val_annotations: Path | None, val_images: Path | None
) -> list[Place]:
    """Find the training data and, if there is any, the validation data.

    Args:
        annotations: The training annotations, YOLO's YAML file, or the folder of a whole data set.
        images: The training images. None finds them from `annotations`.
        val_annotations: The validation annotations, in any of the same forms. None takes those that `annotations`
            names, if any.
        val_images: The validation images. None takes `images`, or finds them from `val_annotations`.

    Returns:
        One or two places, the training data first.

    Raises:
        DataError: The data cannot be found, or annotations and images are swapped.
    """
    found = _parts(annotations, images)
    if val_annotations:
        val = _parts(val_annotations, val_images or (images if holds_annotations(val_annotations) else None))
        found = [found[0], val[-1]]
    return found


def _parts(source: Path, images: Path | None) -> list[Place]:
    if images and are_swapped(source, images):
        raise DataError(
            f"{source} is a folder of images, and {images} holds annotations: they are swapped. "
            f"Give the annotations first: {shlex.join([str(images), str(source)])}"
        )
    if images and (fault := folder_fault(images)):
        hint = f" To evaluate on {images}, give it as --val-json." if holds_annotations(images) else ""
        raise DataError(f"image folder {images} {fault}. Give the folder that contains the images.{hint}")
    if source.suffix.lower() in YAML_SUFFIXES and source.is_file():
        return [Place(labels_of(images), images, source)] if images else _from_yaml(source)
    if images is None:
        return _from_folder(source) if source.is_dir() else [_with_images(source)]
    if source.is_dir() and not holds_annotations(source):
        found = _from_folder(source)
        if not all(place.images.absolute().is_relative_to(images.absolute()) for place in found):
            raise DataError(
                f"{source} is the folder of a data set with annotations in {found[0].annotations} and images in "
                f"{found[0].images}, but {images} was given as the image folder. Leave it out, or give both: "
                f"{shlex.join([str(found[0].annotations), str(images)])}"
            )
        return found
    return [Place(source, images)]


def _from_folder(root: Path) -> list[Place]:
    """Find the parts of a data set in the layouts of Pascal VOC, YOLO, CVAT, COCO and Roboflow."""
    for find in (_yaml_part, _split_folders, *_IN_ONE_FOLDER):
        if found := find(root):
            return found
    below = [path for path in sorted(root.iterdir()) if path.is_dir() and find_voc_files(path)]
    if below:
        raise DataError(f"{root} contains several data sets. Give one of them: {listed([str(path) for path in below])}")
    if not holds_annotations(root) and has_images(root) and _holds_data(root.absolute().parent):
        raise DataError(
            f"{root} is a folder of images without annotations. Give the folder of the data set: {root.parent}"
        )
    raise DataError(unknown_folder(root))


def _holds_data(folder: Path) -> bool:
    try:
        return any(find(folder) for find in (_yaml_part, *_IN_ONE_FOLDER))
    except DataError:
        return False


def _yaml_part(root: Path) -> list[Place]:
    files = [path for path in sorted(root.iterdir()) if path.suffix.lower() in YAML_SUFFIXES and _names_parts(path)]
    return _from_yaml(files[0]) if len(files) == 1 else []


def _names_parts(path: Path) -> bool:
    try:
        content = _read_yaml(path)
    except DataError:
        return False
    return isinstance(content, dict) and {"train", "names"} <= content.keys()


def _read_yaml(path: Path) -> Any:
    return read_plain_yaml(path, DataError, keys=(str, int))


def _from_yaml(path: Path) -> list[Place]:
    content = _read_yaml(path)
    if not isinstance(content, dict) or "train" not in content:
        raise DataError(f"{path} names no training images (train: images/train). Give annotations and images instead.")
    val = next((key for key in _VAL if content.get(key)), None)
    return [_named_part(path, content, key) for key in ("train", val) if key]


def _named_part(path: Path, content: dict[str, Any], key: str) -> Place:
    value, base = content[key], path.parent
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: {key} is {value!r}. Expected one folder of images, or one list of them.")
    if isinstance(content.get("path"), str):
        base = base / content["path"]
    # Roboflow writes ../train/images for a folder next to the file.
    tried = [base / value, path.parent / value, path.parent / value.removeprefix("../")]
    found = next((place for place in tried if place.exists()), None)
    if found is None:
        raise DataError(
            f"{path}: {key} is {value!r}, but {tried[0]} does not exist. {path.parent} contains "
            f"{describe_folder(path.parent)}. Correct the file, or give the folders of labels and images."
        )
    if found.is_file():
        return Place(found, images_of_list(found) or path.parent, path)
    images = found / "images" if (found / "images").is_dir() else found
    return Place(labels_of(images), images, path)


def _voc_parts(root: Path) -> list[Place]:
    if not find_voc_files(root):
        return []
    lists = [root / LISTS / f"{part}.txt" for part in ("train", "val")]
    sources = lists if all(path.is_file() for path in lists) else [root]
    return [_with_images(source) for source in sources]


def _split_folders(root: Path) -> list[Place]:
    """Find folders train and val (or valid) with annotations of their own."""
    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    train, val = (next((folders[name] for name in names if name in folders), None) for names in (_TRAIN, _VAL))
    if train is None or not _has_own_annotations(train):
        return []
    return [_from_folder(folder)[0] for folder in (train, val) if folder and _has_own_annotations(folder)]


def _has_own_annotations(folder: Path) -> bool:
    return holds_annotations(folder) or (folder / "labels").is_dir() or any(folder.glob("*.json"))


def _coco_parts(root: Path) -> list[Place]:
    return _json_parts(root / "annotations")


def _json_parts(folder: Path) -> list[Place]:
    """Find COCO JSON files directly in a folder."""
    files = sorted(folder.glob("*.json"))
    # COCO has captions and keypoints of the same images beside its instances.
    files = [path for path in files if path.name.startswith("instances")] or files
    parts = [[path for path in files if any(name in path.stem.lower() for name in names)] for names in (_TRAIN, _VAL)]
    if len(files) == 1:
        return [_with_images(files[0])]
    if len(parts[0]) == 1 and len(parts[1]) <= 1:
        return [_with_images(part[0]) for part in parts if part]
    if files:
        raise DataError(
            f"{folder} contains {len(files)} JSON files. Give the one to train on, and --val-json: "
            f"{listed([str(path) for path in files])}"
        )
    return []


def _label_folders(root: Path) -> list[Place]:
    labels = root / "labels"
    if not labels.is_dir():
        return []
    parts = [next((labels / name for name in names if (labels / name).is_dir()), None) for names in (_TRAIN, _VAL)]
    return [_with_images(part) for part in parts if part] or [_with_images(labels)]


def _cvat_parts(root: Path) -> list[Place]:
    files = [path for path in sorted(root.glob("*.xml")) if is_cvat(path)]
    return [_with_images(files[0])] if len(files) == 1 else []


def _labels(root: Path) -> list[Place]:
    return [_with_images(root)] if holds_annotations(root) else []


# JSON files come last: earlier inspections may have converted other annotations into them.
_IN_ONE_FOLDER = (_voc_parts, _coco_parts, _label_folders, _cvat_parts, _labels, _json_parts)


def _with_images(source: Path) -> Place:
    """Find the images of annotations."""
    kind, folder = find_annotations(source)
    if kind == VOC_FORMAT:
        below = [folder / VOC_IMAGES, folder / "images", folder.parent / VOC_IMAGES, folder.parent / "images", folder]
        found = next((path for path in below if has_images(path)), None)
    elif kind in (COCO_FORMAT, CVAT_FORMAT):
        places = find_image_folder(_file_names(source, kind), source.parent)
        found = places[0] if places else None
    else:
        found = images_of_list(source) if folder != source else images_of(folder)
        found = found if found and has_images(found) else None
    if found is None:
        raise DataError(f"The images of {source} were not found near it. Give their folder after the annotations.")
    return Place(source, found)


def _file_names(source: Path, kind: str) -> Sequence[str]:
    if kind == COCO_FORMAT:
        names = [image.get("file_name") for image in read_json(source)["images"] if isinstance(image, dict)]
    else:
        names = [image.get("name") for image in read_plain_xml(source, DataError).iterfind("image")]
    return [name for name in names if isinstance(name, str) and name]
