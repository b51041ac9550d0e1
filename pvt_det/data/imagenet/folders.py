"""Labeled images of a classification data set, in any of ImageNet's common layouts.

`open_images` recognizes three layouts for the splits `train` and `val`:

- class folders: `train/<class>/*` and `val/<class>/*`;
- ILSVRC2012 as downloaded: class folders in `train/`, all validation images in `val/`, and a list of their classes;
- shards: folders `train/` and `val/` that `pvt-det shard` has written, tar files with the word train or val in their
  names, or all tar files in the split's folder.

Class folders and those that `pvt-det shard` has written can also be in an object store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from pvt_det.data.imagenet.labels import find_val_labels, read_val_labels
from pvt_det.data.imagenet.shards import ShardImages, find_shards, open_folder, open_tars
from pvt_det.data.storage.places import attach, has_shards, prefetch, read_content
from pvt_det.data.storage.references import Reference, is_url, join, shown
from pvt_det.data.storage.shards import ShardFolder
from pvt_det.errors import DataError, StorageError
from pvt_det.utils.paths import file_fault
from pvt_det.utils.text import did_you_mean

Split = Literal["train", "val"]
# Usual names of a split's folder.
_FOLDERS: dict[str, tuple[str, ...]] = {"train": ("train", "training"), "val": ("val", "validation", "valid")}


class ImageSource(Protocol):
    """Encoded images with one label each, accessed by index.

    A source may also have a method `prefetch(indices)`, which begins to fetch images and returns at once.

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
        root: Folder that the paths are relative to, a path or URL.
        paths: Image files.
        labels: Label of each image.
        classes: Class names. A label is an index into them.
    """

    def __init__(self, root: Reference, paths: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> None:
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
            StorageError: The file is in an object store and has changed or cannot be read.
        """
        if is_url(self.root):
            return self._read_object(self.name(index))
        path = Path(self.name(index))
        if fault := file_fault(path):
            raise OSError(f"{path} {fault}")
        return path.read_bytes()

    @staticmethod
    def _read_object(url: str) -> bytes:
        try:
            content = read_content(url)
        except StorageError:
            raise
        except DataError as error:  # it does not exist
            raise OSError(str(error)) from error
        assert content is not None
        return content

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that will be read soon, if they are in an object store. Returns at once.

        Args:
            indices: Indices of the images, in the order in which they will be needed.
        """
        if is_url(self.root):
            prefetch([self.name(index) for index in indices])

    def relative_name(self, index: int) -> str:
        """Return the path of an image file relative to the folder of the images.

        Args:
            index: Index of the image.
        """
        return os.fsdecode(bytes(self._paths[index]))

    def name(self, index: int) -> str:
        """Return the path of an image file.

        Args:
            index: Index of the image.
        """
        return join(self.root, self.relative_name(index))

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
        root: Folder of the data set, a path or URL.
        split: "train" or "val".
        classes: Class names in the order that a model was trained with. By default the sorted names of the folders.
        val_labels: List of the validation images' classes, for ILSVRC2012 as downloaded, in a format of
            `read_val_labels`. By default the devkit is searched for in `root` and its parent folder.

    Raises:
        DataError: The folder has none of the layouts, a class is unknown, an image has no label, or `val_labels` is
            given although the layout already defines the labels.
    """
    if (found := _open_place(root, split, classes)) is not None:
        _refuse_val_labels(val_labels, f"the shards in {root}")
        return found
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: folder does not exist. --data expects a folder with train/ and val/, or tar shards.")
    if shards := find_shards(root, _FOLDERS[split]):
        _refuse_val_labels(val_labels, f"the shards in {root}")
        return open_tars(shards, classes)
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


def _open_place(root: str | Path, split: Split, classes: Sequence[str] | None) -> ImageSource | None:
    """Open a split in a folder of shards, or any in an object store. None for other local folders."""
    folders = [join(root, name) for name in _FOLDERS[split]]
    for folder in folders:
        place = attach(folder) if is_url(root) or has_shards(folder) else None
        if isinstance(place, ShardFolder):
            return open_folder(place, classes)
        if place is not None and (names := place.names()):
            return _open_objects(folder, names, classes)
    if is_url(root):
        raise DataError(
            f"{shown(root)}: expected a folder {_FOLDERS[split][0]}/ with shards that pvt-det shard --classes has "
            "written, or with one folder of images per class."
        )
    return None


def _open_objects(folder: str, names: Sequence[str], classes: Sequence[str] | None) -> FileImages:
    """Open class folders in an object store, in the order in which `make_dataset` lists those of a disk."""
    paths = [PurePosixPath(name) for name in names if "/" in name and name.lower().endswith(IMG_EXTENSIONS)]
    found = sorted({path.parts[0] for path in paths})
    to_label = _to_label(folder, found, classes)
    paths.sort(key=lambda path: (path.parts[0], str(path.parent), path.name))
    labels = [to_label[path.parts[0]] for path in paths]
    return FileImages(folder, [str(path) for path in paths], labels, list(to_label))


def _to_label(folder: Reference, found: Sequence[str], classes: Sequence[str] | None) -> dict[str, int]:
    """Return the label of each class, and refuse folders that are not among the given classes."""
    classes = found if classes is None else classes
    if unknown := sorted(set(found) - set(classes)):
        raise DataError(
            f"{join(folder, unknown[0])}: {len(unknown)} of the {len(found)} class folders are not among the "
            f"{len(classes)} classes of the training images or the model.{did_you_mean(unknown[0], classes)}"
        )
    return {name: label for label, name in enumerate(classes)}


def _refuse_val_labels(val_labels: str | Path | None, source: str) -> None:
    if val_labels:
        raise DataError(
            f"--val-labels {val_labels}: not used, because {source} already define the labels. Omit --val-labels, "
            "which is only for ILSVRC2012 as downloaded."
        )


def _open_class_folders(folder: Path, classes: Sequence[str] | None) -> FileImages:
    found, _ = find_classes(folder)
    to_label = _to_label(folder, found, classes)
    try:
        samples = make_dataset(folder, {name: to_label[name] for name in found}, extensions=IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {error}. Remove the empty folders or add their images.") from error
    paths = [os.path.relpath(path, folder) for path, _ in samples]
    return FileImages(folder, paths, [label for _, label in samples], list(to_label))


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
