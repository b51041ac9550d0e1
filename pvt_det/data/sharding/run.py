"""Turn a data set into shards, and verify them: what `pvt-det shard` does."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from pvt_det.data.coco.cache import load_annotations
from pvt_det.data.images import IMAGE_SUFFIXES
from pvt_det.data.sharding.writer import Item, Settings, write_shards
from pvt_det.data.storage.shards import ANNOTATIONS, DESCRIPTION, IMAGES, Description
from pvt_det.errors import DataError
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
    data, findings = load_annotations(json_file)
    findings.raise_if_refused(str(json_file), settings.on_error)
    if fault := folder_fault(images):
        raise DataError(f"image folder {images} {fault}. Give the folder that contains the images.")
    names = sorted({image["file_name"] for image in data.images})
    description = write_shards(output, IMAGES, [Item(name, images / name) for name in names], settings, json_file)
    known = set(names)
    others = sum(path.suffix.lower() in IMAGE_SUFFIXES and path.name not in known for path in images.iterdir())
    if others:
        logger.info("%s of %s not named in %s and not in the shards", counted(others, "image"), images, json_file)
    return [Written(output, description, ["--train-json", str(output / ANNOTATIONS), "--train-images", str(output)])]


def verify(folder: Path) -> Description:
    """Check the SHA-256 of every file of a folder of shards.

    Args:
        folder: The folder.

    Returns:
        The description of the folder.

    Raises:
        DataError: A file is missing or damaged. The message names all such files.
    """
    try:
        description = Description.parse((folder / DESCRIPTION).read_bytes(), str(folder / DESCRIPTION))
    except OSError as error:
        raise DataError(
            f"{folder} is not a complete folder of shards: {DESCRIPTION} cannot be read ({error.strerror}). Write it "
            "with pvt-det shard, which continues an interrupted command."
        ) from error
    damaged = []
    for file in description.files:
        try:
            with (folder / file.name).open("rb") as content:
                is_same = hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
            fault = "" if is_same else "has another SHA-256 than when it was written"
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault:
            damaged.append(f"{file.name} {fault}")
    if damaged:
        raise DataError("\n  ".join([f"{folder} is damaged:", *damaged]) + "\nCopy these files again.")
    return description
