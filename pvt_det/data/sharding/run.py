"""Turn a data set into shards, and verify them: what `pvt-det shard` does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pvt_det.data.coco.cache import load_annotations
from pvt_det.data.coco.findings import Findings
from pvt_det.data.imagenet.folders import FileImages, open_images
from pvt_det.data.images import IMAGE_SUFFIXES
from pvt_det.data.sharding.writer import Item, Settings, write_shards
from pvt_det.data.storage import remote
from pvt_det.data.storage.places import read_description
from pvt_det.data.storage.references import Reference, is_url, join
from pvt_det.data.storage.shards import CLASSES, IMAGES, LABEL_MAPS, Description, StoredFile
from pvt_det.errors import DataError
from pvt_det.utils.digest import file_digest
from pvt_det.utils.paths import folder_fault
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """A folder of shards that was written.

    Attributes:
        folder: The folder.
        description: Its description.
        options: Options of `pvt-det train` that use it, such as `["--train-images", "shards"]`.
    """

    folder: Path
    description: Description
    options: list[str]


def shard_coco(json_file: Path, images: Path, output: Path, settings: Settings) -> list[Written]:
    """Put the images of a COCO-format data set and its annotation file into a folder of shards.

    Args:
        json_file: Annotation file in COCO's instances format.
        images: Folder of the images.
        output: The folder to write.
        settings: How to write the shards.

    Raises:
        ConfigError: The output folder cannot be written to.
        DataError: The data set cannot be used, or the output folder is already complete.
    """
    items = _coco_items(json_file, images, settings)
    description = write_shards(output, IMAGES, items, settings, annotations=json_file)
    return [Written(output, description, ["--train-json", str(output), "--train-images", str(output)])]


def shard_labels(
    images: Path, labels: Path, output: Path, settings: Settings, json_file: Path | None = None
) -> list[Written]:
    """Put images and their label maps into the folders of shards `images` and `labels`.

    Args:
        images: Folder of the images.
        labels: Folder of the label maps, PNG files with the names of the images.
        output: The folder to write to.
        settings: How to write the shards.
        json_file: Annotation file of the images' objects, for Panoptic FPN, which is copied to the images. None for
            semantic segmentation.

    Raises:
        ConfigError: The output folder cannot be written to.
        DataError: The data set cannot be used, or one of the two folders is already complete.
    """
    found = _folder_items(images, IMAGE_SUFFIXES) if json_file is None else _coco_items(json_file, images, settings)
    maps = _folder_items(labels, (".png",))
    _check_pairs(found, maps, labels, settings)
    written = [
        Written(
            output / "images",
            write_shards(output / "images", IMAGES, found, settings, annotations=json_file),
            ["--train-images", str(output / "images")],
        ),
        Written(
            output / "labels",
            write_shards(output / "labels", LABEL_MAPS, maps, settings),
            ["--train-labels", str(output / "labels")],
        ),
    ]
    if json_file is not None:
        written[0].options[:0] = ["--train-json", str(output / "images")]
    return written


def shard_classes(data: Path, output: Path, settings: Settings, val_labels: Path | None = None) -> list[Written]:
    """Put the training and validation images of a classification data set into the folders of shards `train` and `val`.

    Args:
        data: Folder of the data set: class folders in `train/` and `val/`, or ILSVRC2012 as downloaded.
        output: The folder to write to.
        settings: How to write the shards.
        val_labels: List of the validation images' classes, for ILSVRC2012 as downloaded.

    Raises:
        ConfigError: The output folder cannot be written to.
        DataError: The data set cannot be used or is in shards, or one of the two folders is already complete.
    """
    written, classes = [], None
    for split in ("train", "val"):
        source = open_images(data, split, classes, val_labels if split == "val" else None)
        if not isinstance(source, FileImages):
            raise DataError(f"{data} is already in shards. Give a folder with individual images.")
        classes = source.classes
        names = [source.relative_name(index) for index in range(len(source))]
        items = [Item(name, Path(source.name(index)), int(source.labels[index])) for index, name in enumerate(names)]
        description = write_shards(output / split, CLASSES, items, settings, classes=classes)
        written.append(Written(output / split, description, ["--data", str(output)]))
    return written


def _coco_items(json_file: Path, images: Path, settings: Settings) -> list[Item]:
    data, findings = load_annotations(json_file)
    findings.raise_if_refused(str(json_file), settings.on_error)
    names = sorted({image["file_name"] for image in data.images})
    known = set(names)
    if others := sum(Path(item.name).name not in known for item in _folder_items(images, IMAGE_SUFFIXES)):
        logger.warning("%s in %s not named in %s and not in the shards", counted(others, "image"), images, json_file)
    return [Item(name, images / name) for name in names]


def _folder_items(folder: Path, suffixes: tuple[str, ...]) -> list[Item]:
    if fault := folder_fault(folder):
        raise DataError(f"folder {folder} {fault}.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    return [Item(path.name, path) for path in found]


def _check_pairs(images: Sequence[Item], maps: Sequence[Item], labels: Path, settings: Settings) -> None:
    """Report images without a label map and label maps without an image, as training does."""
    findings = Findings()
    stems, map_stems = ({Path(item.name).stem for item in items} for items in (images, maps))
    for name in sorted(stems - map_stems):
        findings.add("image without a label map", name)
    for name in sorted(map_stems - stems):
        findings.add("label map without an image", name)
    findings.raise_if_refused(str(labels), settings.on_error)
    for line in findings.lines(settings.on_error):
        logger.warning("%s: %s", labels, line)


def verify(folder: Reference) -> Description:
    """Check the SHA-256 of every file of a folder of shards.

    Args:
        folder: The folder, a path or URL.

    Returns:
        The description of the folder.

    Raises:
        DataError: A file is missing or damaged. The message names all such files.
    """
    description = read_description(folder)
    faults = {file.name: _fault(join(folder, file.name), file) for file in description.files}
    if damaged := [f"{name} {fault}" for name, fault in faults.items() if fault]:
        raise DataError("\n  ".join([f"{folder} is damaged:", *damaged]) + "\nCopy these files again.")
    return description


def _fault(reference: str, file: StoredFile) -> str:
    try:
        # Objects are read from the store, not from the cache.
        sha256 = remote.digest_object(reference) if is_url(reference) else file_digest(reference)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except remote.Absent:
        return "does not exist"
    return "" if sha256 == file.sha256 else "has another SHA-256 than when it was written"
