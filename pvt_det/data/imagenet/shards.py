"""Images in tar files, in WebDataset's layout: `<key>.jpg` with `<key>.cls` or `<key>.json`.

Shards are read by random access instead of sequentially. Sampling, distribution over processes and resuming are
therefore bit-identical to individual files, while the file system handles only a few large files. The positions of the
images are indexed once and cached.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from pvt_det.errors import DataError
from pvt_det.utils.files import open_atomically

logger = logging.getLogger(__name__)
_LABELS = (".cls", ".json")


def find_shards(root: Path, names: Sequence[str]) -> list[Path]:
    """Find the tar files of a split.

    Args:
        root: Folder of the data set.
        names: Possible names of the split. The first one with any files is used.

    Returns:
        Sorted files `root/*<name>*.tar`, or if there are none, `root/<name>/*.tar`. The list may be empty.
    """
    for name in names:
        if shards := sorted(root.glob(f"*{name}*.tar")) or sorted((root / name).glob("*.tar")):
            return shards
    return []


class ShardImages:
    """Images in tar files, accessed by index.

    Args:
        shards: The tar files.
        classes: Class names. By default they come from `classes.txt`, one per line, in the shards' folder or its
            parent. If that file does not exist, they are the numbers from 0 to the largest label.

    Raises:
        DataError: A shard cannot be read, an image has no label, or a label is out of range.
    """

    def __init__(self, shards: Sequence[Path], classes: Sequence[str] | None = None) -> None:
        self._shards = [shard.resolve() for shard in shards]
        self._files: dict[int, int] = {}
        index = _load_index(self._shards)
        self._keys, self._places, self.labels = index["keys"], index["places"], index["labels"]
        largest = int(self.labels.max())
        names = _class_names(shards[0].parent) if classes is None else classes
        self.classes = tuple(names or map(str, range(largest + 1)))
        if largest >= len(self.classes):
            raise DataError(
                f"{shards[0].parent}: the shards contain label {largest}, but there are only {len(self.classes)} "
                "classes. Labels start at 0."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """Read an image file.

        Args:
            index: Index of the image.

        Returns:
            Content of the file.

        Raises:
            OSError: The shard cannot be read.
        """
        shard, offset, size = (int(value) for value in self._places[index])
        if shard not in self._files:
            self._files[shard] = os.open(self._shards[shard], os.O_RDONLY)
        # pread does not move the file position, which forked processes share.
        return os.pread(self._files[shard], size, offset)

    def name(self, index: int) -> str:
        """Return the shard of an image and its name in the shard.

        Args:
            index: Index of the image.
        """
        return f"{self._shards[self._places[index][0]]}: {os.fsdecode(bytes(self._keys[index]))}"

    def digest(self) -> str:
        """Return the SHA-256 of the names, places and labels, as 64 hex digits. It does not depend on the folder."""
        return hashlib.sha256(self._keys.tobytes() + self._places.tobytes() + self.labels.tobytes()).hexdigest()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}


def _class_names(folder: Path) -> list[str] | None:
    for path in (folder / "classes.txt", folder.parent / "classes.txt"):
        if path.is_file():
            return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return None


def _load_index(shards: Sequence[Path]) -> dict[str, np.ndarray]:
    """Return names, places (N×3: shard, offset, size) and labels of all images, cached if possible."""
    identity = [(str(shard), (stat := shard.stat()).st_size, stat.st_mtime_ns) for shard in shards]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    folder = Path(os.environ.get("PVT_DET_CACHE", "~/.cache/pvt_det")).expanduser() / "shards"
    cached = folder / f"{digest}.npz"
    if cached.is_file():
        with np.load(cached, allow_pickle=False) as file:
            return dict(file)
    logger.info("Indexing %d shards in %s", len(shards), shards[0].parent)
    rows = [(number, *row) for number, shard in enumerate(shards) for row in _index_shard(shard)]
    index = {
        "keys": np.asarray([os.fsencode(key) for _, key, _, _, _ in rows], dtype=np.bytes_),
        "places": np.asarray([(number, offset, size) for number, _, offset, size, _ in rows], dtype=np.int64),
        "labels": np.asarray([label for *_, label in rows], dtype=np.int64),
    }
    _save_index(cached, index)
    return index


def _save_index(path: Path, index: dict[str, np.ndarray]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path) as file:
            np.savez(file, allow_pickle=False, **index)
    except OSError as error:
        logger.warning("%s: cannot be written (%s). Every start will index the shards again.", path, error.strerror)


def _index_shard(shard: Path) -> list[tuple[str, int, int, int]]:
    """Return name, offset, size and label of each image of a shard."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                # As in WebDataset, the key ends at the first dot of the file name.
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                key, extension = f"{folder}/{stem}", (dot + extension).lower()
                if member.isfile() and extension.endswith(IMG_EXTENSIONS):
                    images[key] = (member.name, member.offset_data, member.size)
                elif member.isfile() and extension in _LABELS and key not in labels:
                    content = tar.extractfile(member)
                    assert content is not None
                    labels[key] = _label(content.read(), extension)
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{shard}: cannot be read as a shard of images and labels ({error!r}). Copy it again."
        ) from error
    if missing := sorted(set(images) - set(labels)):
        raise DataError(f"{shard}: {images[missing[0]][0]} has no label. Expected {missing[0]}.cls or .json with it.")
    if not images:
        raise DataError(f"{shard}: contains no images. Expected files such as 000000.jpg and 000000.cls.")
    return [(*place, labels[key]) for key, place in images.items()]


def _label(content: bytes, extension: str) -> int:
    label = int(json.loads(content)["label"] if extension == ".json" else content)
    if label < 0:
        raise ValueError(f"label {label} is negative")
    return label
