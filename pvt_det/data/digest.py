"""Describe the content of a data set by counts and digests, to notice that two runs or processes use different data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog

from pvt_det.data.storage.places import attach, file_length
from pvt_det.data.storage.references import join
from pvt_det.utils.digest import file_digest, value_digest

# Number of files whose size is part of a digest. Reading the size of every file would take minutes on a slow network.
_SIZES = 1000
_DIGITS = 16


def describe_dataset(name: str) -> dict[str, str]:
    """Describe the images and labels of a registered data set, independently of the folder they are in.

    Images and label maps are described by their names and by the sizes of 1000 of the files, which are spread evenly.

    Args:
        name: Name in Detectron2's catalogs.

    Returns:
        A count and a digest for each of "annotations", "images" and "label maps" that the data set has. Empty for a
        data set that was registered by other code without the metadata `json_file`.

    Raises:
        DataError: The annotations cannot be used.
    """
    metadata = MetadataCatalog.get(name)
    facts = {}
    if source := metadata.get("coco_source"):
        images = source.images()
        facts["annotations"] = f"{images.objects}, {_sha256(images.data.sha256)}"
        facts["images"] = _describe_files(source.image_root, images.file_names)
    elif (json_file := metadata.get("json_file")) and Path(json_file).is_file():
        facts["annotations"] = _sha256(file_digest(json_file))
    if labels := metadata.get("label_source"):
        records = labels.records()
        for fact, root, key in (
            ("images", labels.image_root, "file_name"),
            ("label maps", labels.label_root, "sem_seg_file_name"),
        ):
            facts[fact] = _describe_files(root, [os.path.relpath(record[key], root) for record in records])
    elif (root := metadata.get("sem_seg_root")) and Path(root).is_dir():
        facts["label maps"] = _describe_files(root, sorted(path.name for path in Path(root).iterdir()))
    return facts


def _describe_files(root: str | Path, names: Sequence[str]) -> str:
    chosen = names[:: max(1, len(names) // _SIZES)]
    attach(root)
    sizes = [file_length(join(root, name)) for name in chosen]
    return f"{len(names)}, {_sha256(value_digest([list(names), sizes]))}"


def _sha256(digest: str) -> str:
    return f"SHA-256 {digest[:_DIGITS]}…"
