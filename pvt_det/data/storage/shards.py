"""Folders of shards, as `pvt-det shard` writes them: tar files in place of a folder of files.

A folder of shards has a description, `shards.json`, which names the tar files and the index with their sizes and
SHA-256. The description is written last, so a folder that has one is complete.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pvt_det.data.storage.index import Index, read_index
from pvt_det.data.storage.ranges import Range
from pvt_det.data.storage.references import join
from pvt_det.errors import DataError
from pvt_det.utils.paths import ABSENT

DESCRIPTION = "shards.json"
INDEX = "index.npz"
ANNOTATIONS = "annotations.json"
# What the files of a folder of shards are.
IMAGES, LABEL_MAPS, CLASSES = "images", "label maps", "images with classes"
_FORMAT, _VERSION = "pvt_det shards", 1
_ARRAYS = ("keys", "places", "sizes", "digests")


@dataclass(frozen=True)
class StoredFile:
    """One file of a folder of shards.

    Attributes:
        name: Name in the folder.
        size: Size in bytes.
        sha256: SHA-256 of the content, 64 hex digits.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """Content of `shards.json`.

    Attributes:
        content: What the files are: "images", "label maps" or "images with classes".
        shards: The tar files.
        index: The index file.
        annotations: Annotation file in COCO's format, or None.
        classes: Class names of "images with classes". A label is an index into them.
        unusable: What was wrong with broken images when the shards were written, by name.
    """

    content: str
    shards: tuple[StoredFile, ...]
    index: StoredFile
    annotations: StoredFile | None = None
    classes: tuple[str, ...] = ()
    unusable: Mapping[str, str] | None = None

    @property
    def files(self) -> list[StoredFile]:
        """All files that the description names."""
        return [*self.shards, self.index, *([self.annotations] if self.annotations else [])]

    def dump(self) -> str:
        """Return the text of `shards.json`."""
        return json.dumps({"format": _FORMAT, "version": _VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: bytes, source: str) -> Description:
        """Read the text of `shards.json`.

        Args:
            text: The text.
            source: Where it comes from, for messages.

        Raises:
            DataError: It is not the description of a folder of shards, or that of a later version.
        """
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT:
                raise ValueError(f"its format is {data['format']!r}")
            version = data["version"]
            if version == _VERSION:
                annotations = data["annotations"]
                return cls(
                    content=data["content"],
                    shards=tuple(map(_stored_file, data["shards"])),
                    index=_stored_file(data["index"]),
                    annotations=annotations and _stored_file(annotations),
                    classes=tuple(map(str, data["classes"])),
                    unusable=data["unusable"],
                )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{source} does not describe a folder of shards ({error!r}). Copy the folder again, or write it again "
                "with pvt-det shard."
            ) from error
        raise DataError(
            f"{source} has version {version!r} of the format of shards, and this version of pvt_det reads {_VERSION}. "
            "Update pvt_det, or write the shards again with pvt-det shard."
        )


def _stored_file(data: Mapping[str, Any]) -> StoredFile:
    file = StoredFile(data["name"], data["size"], data["sha256"])
    if Path(file.name).name != file.name or type(file.size) is not int or len(file.sha256) != 64:
        raise ValueError(f"{file.name!r} is not a valid entry")
    return file


class Parts(Protocol):
    """Reads byte ranges of a sequence of shards."""

    def read(self, shard: int, offset: int, size: int, digest: int | None = None) -> bytes:
        """Read a byte range.

        Args:
            shard: Number of the shard.
            offset: Position of the first byte.
            size: Number of bytes.
            digest: First 8 bytes of the SHA-256 that the bytes must have, as in an index. None if unknown.

        Raises:
            OSError: The shard cannot be read, or is too short.
        """
        ...

    def range(self, shard: int, offset: int, size: int, digest: int | None = None) -> Range | None:
        """Return the part of an object that `read` with the same arguments needs, or None if it needs none.

        Args:
            shard: Number of the shard.
            offset: Position of the first byte.
            size: Number of bytes.
            digest: First 8 bytes of the SHA-256 that the bytes must have, or None.
        """
        ...


class LocalParts:
    """Reads byte ranges of local files.

    Args:
        paths: The files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [path.resolve() for path in paths]
        self._files: dict[int, int] = {}

    def read(self, shard: int, offset: int, size: int, digest: int | None = None) -> bytes:
        """Read a byte range.

        Args:
            shard: Number of the file.
            offset: Position of the first byte.
            size: Number of bytes.
            digest: Not used: `pvt-det shard --verify` checks local shards.

        Raises:
            OSError: The file cannot be read, or is too short.
        """
        if shard not in self._files:
            file = os.open(self._paths[shard], os.O_RDONLY)
            if self._files.setdefault(shard, file) != file:  # another thread was faster
                os.close(file)
        # pread does not move the file position, which forked processes share.
        content = os.pread(self._files[shard], size, offset)
        if len(content) < size:
            raise OSError(f"{self._paths[shard]} is cut short")
        return content

    def range(self, shard: int, offset: int, size: int, digest: int | None = None) -> None:
        """Return None, because no object is needed.

        Args:
            shard: Number of the shard.
            offset: Position of the first byte.
            size: Number of bytes.
            digest: First 8 bytes of the SHA-256 that the bytes must have, or None.
        """

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


class ShardFolder:
    """A folder of shards, used like a folder with the same files.

    Args:
        root: The folder, a path or URL.
        description: Its description.
        index: Its index.
        parts: Reads the shards.
    """

    def __init__(self, root: str, description: Description, index: Index, parts: Parts) -> None:
        self.root, self.description, self.index, self.parts = root, description, index, parts
        self._order = np.argsort(index["keys"], kind="stable")

    def fault(self, name: str) -> str:
        """Say why a file cannot be read.

        Args:
            name: Name of the file in the folder.

        Returns:
            "does not exist", or "" if it is in the shards.
        """
        return ABSENT if self._row(name) is None else ""

    def read(self, name: str) -> bytes:
        """Read a file.

        Args:
            name: Name of the file in the folder.

        Raises:
            DataError: The file is not in the shards, or the shard cannot be read.
        """
        row = self._require(name)
        shard, offset, size = (int(value) for value in self.index["places"][row])
        try:
            return self.parts.read(shard, offset, size, int(self.index["digests"][row]))
        except OSError as error:
            raise DataError(
                f"image {join(self.root, name)} cannot be read from its shard ({error}). Copy the shards again; "
                f"pvt-det shard --verify {self.root} names the damaged ones."
            ) from error

    def size(self, name: str) -> tuple[int, int] | None:
        """Return width and height of an image in pixels after EXIF rotation, or None for a broken image.

        Args:
            name: Name of the file in the folder.

        Raises:
            DataError: The file is not in the shards.
        """
        width, height = (int(value) for value in self.index["sizes"][self._require(name)])
        return (width, height) if width else None

    def length(self, name: str) -> int:
        """Return the size of a file in bytes, or -1 if it is not in the shards.

        Args:
            name: Name of the file in the folder.
        """
        row = self._row(name)
        return -1 if row is None else int(self.index["places"][row][2])

    def names(self) -> list[str]:
        """Return the sorted names of all files."""
        return [os.fsdecode(bytes(key)) for key in self.index["keys"][self._order]]

    def range(self, name: str) -> Range | None:
        """Return the part of an object that `read` needs, or None for local shards.

        Args:
            name: Name of the file in the folder.

        Raises:
            DataError: The file is not in the shards.
        """
        row = self._require(name)
        shard, offset, size = (int(value) for value in self.index["places"][row])
        return self.parts.range(shard, offset, size, int(self.index["digests"][row]))

    def _row(self, name: str) -> int | None:
        keys, key = self.index["keys"], os.fsencode(name)
        position = int(np.searchsorted(keys, np.bytes_(key), sorter=self._order))
        row = int(self._order[min(position, len(keys) - 1)])
        return row if bytes(keys[row]) == key else None

    def _require(self, name: str) -> int:
        row = self._row(name)
        if row is None:
            raise DataError(f"image {join(self.root, name)} {ABSENT}: it is not in the shards of {self.root}")
        return row


def parse_index(content: bytes, description: Description, source: str) -> Index:
    """Read the index of a folder of shards.

    Args:
        content: Content of the index file.
        description: The description of the folder.
        source: The folder, for messages.

    Raises:
        DataError: The index is damaged, or belongs to other shards.
    """
    try:
        labels = ("labels",) if description.content == CLASSES else ()
        return read_index(io.BytesIO(content), [shard.size for shard in description.shards], (*_ARRAYS, *labels))
    except ValueError as error:
        raise DataError(
            f"{join(source, description.index.name)}: the index of the shards is damaged ({error}). Copy the folder "
            "again, or write it again with pvt-det shard."
        ) from error
