"""Labeled images of a classification data set, in any of ImageNet's common layouts.

`open_images` recognizes three layouts for the splits `train` and `val`:

- class folders: `train/<class>/*` and `val/<class>/*`;
- ILSVRC2012 as downloaded: class folders in `train/`, all validation images in `val/`, and a list of their classes;
- shards: tar files with the word train or val in their names, or all tar files in the split's folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from pvt_det.data.imagenet.labels import find_val_labels, read_val_labels
from pvt_det.data.imagenet.shards import ShardImages, find_shards
from pvt_det.errors import DataError
from pvt_det.utils.paths import file_fault
from pvt_det.utils.text import did_you_mean

Split = Literal["train", "val"]
# Usual names of a split's folder.
_FOLDERS: dict[str, tuple[str, ...]] = {"train": ("train", "training"), "val": ("val", "validation", "valid")}


class ImageSource(Protocol):
    """Encoded images with one label each, accessed by index.

    Attributes:
        classes: Class names. A label is an index into them.
        labels: Label of each image, int64.
    """

    classes: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, index: int) -> bytes:
        """Read an image file.

        Args:
            index: Index of the image.

        Returns:
            Content of the file.

        Raises:
            OSError: The file cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Return the location of an image, for messages.

        Args:
            index: Index of the image.
        """
        ...


class FileImages:
    """Images in individual files.

    Args:
        root: Folder that the paths are relative to.
        paths: Image files.
        labels: Label of each image.
        classes: Class names. A label is an index into them.
    """

    def __init__(self, root: Path, paths: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> None:
        self.root = root
        self.classes = tuple(classes)
        self.labels = np.asarray(labels, dtype=np.int64)
        # An array, because reference counts of a list's elements would make each loader worker copy its memory pages.
        self._paths = np.asarray([os.fsencode(path) for path in paths], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> bytes:
        """Read an image file.

        Args:
            index: Index of the image.

        Returns:
            Content of the file.

        Raises:
            OSError: The file cannot be read.
        """
        path = Path(self.name(index))
        if fault := file_fault(path):
            raise OSError(f"{path} {fault}")
        return path.read_bytes()

    def name(self, index: int) -> str:
        """Return the path of an image file.

        Args:
            index: Index of the image.
        """
        return str(self.root / os.fsdecode(bytes(self._paths[index])))

    def digest(self) -> str:
        """Return the SHA-256 of the paths and labels, as 64 hex digits. It does not depend on the folder."""
        return hashlib.sha256(self._paths.tobytes() + self.labels.tobytes()).hexdigest()


def describe_images(source: ImageSource) -> str:
    """Describe images by their number and a digest, to notice that two runs or processes use different ones.

    Args:
        source: The images. Their labels are part of the digest, and with a method `digest` also their names.
    """
    names = source.digest() if isinstance(source, FileImages | ShardImages) else ""
    digest = hashlib.sha256(names.encode() + source.labels.tobytes()).hexdigest()
    return f"{len(source)}, SHA-256 {digest[:16]}…"


def open_images(
    root: str | Path, split: Split, classes: Sequence[str] | None = None, val_labels: str | Path | None = None
) -> ImageSource:
    """Open one split of a classification data set in any supported layout.

    Args:
        root: Folder of the data set.
        split: "train" or "val".
        classes: Class names in the order that a model was trained with. By default the sorted names of the folders.
        val_labels: List of the validation images' classes, for ILSVRC2012 as downloaded, in a format of
            `read_val_labels`. By default the devkit is searched for in `root` and its parent folder.

    Raises:
        DataError: The folder has none of the layouts, a class is unknown, an image has no label, or `val_labels` is
            given although the layout already defines the labels.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: folder does not exist. --data expects a folder with train/ and val/, or tar shards.")
    if shards := find_shards(root, _FOLDERS[split]):
        _refuse_val_labels(val_labels, f"the shards in {root}")
        return ShardImages(shards, classes)
    folder = next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(
            f"{root}: expected a folder {_FOLDERS[split][0]}/ or shards such as {_FOLDERS[split][0]}-0000.tar, "
            f"found {_listing(root)}."
        )
    if any(entry.is_dir() for entry in os.scandir(folder)):
        _refuse_val_labels(val_labels, f"the folders in {folder}")
        return _open_class_folders(folder, classes)
    if split == "train":
        raise DataError(f"{folder}: expected one folder of images per class, found {_listing(folder)}.")
    return _open_flat(root, folder, classes, val_labels)


def _refuse_val_labels(val_labels: str | Path | None, source: str) -> None:
    if val_labels:
        raise DataError(
            f"--val-labels {val_labels}: not used, because {source} already define the labels. Omit --val-labels, "
            "which is only for ILSVRC2012 as downloaded."
        )


def _open_class_folders(folder: Path, classes: Sequence[str] | None) -> FileImages:
    found, _ = find_classes(folder)
    classes = found if classes is None else list(classes)
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(
            f"{folder / unknown[0]}: {len(unknown)} of the {len(found)} class folders are not among the {len(classes)} "
            f"classes of the training images or the model.{did_you_mean(unknown[0], classes)}"
        )
    to_label = {name: label for label, name in enumerate(classes)}
    try:
        samples = make_dataset(folder, {name: to_label[name] for name in found}, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {error}. Remove the empty folders or add their images.") from error
    paths = [os.path.relpath(path, folder) for path, _ in samples]
    return FileImages(folder, paths, [label for _, label in samples], classes)


def _open_flat(root: Path, folder: Path, classes: Sequence[str] | None, val_labels: str | Path | None) -> FileImages:
    """Open ILSVRC2012's validation images, which are all in one folder."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(IMG_EXTENSIONS))
    if not names:
        raise DataError(f"{folder}: contains no images, only {_listing(folder)}.")
    if classes is None:
        classes = open_images(root, "train").classes
    labels = read_val_labels(find_val_labels(root, val_labels), names, classes)
    return FileImages(folder, names, labels, classes)


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in os.scandir(folder))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
