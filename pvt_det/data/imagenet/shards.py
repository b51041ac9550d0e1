"""Images in tar files, in WebDataset's layout: `<key>.jpg` with `<key>.cls` or `<key>.json`.

Shards are read by random access instead of sequentially. Sampling, distribution over processes and resuming are
therefore bit-identical to individual files, while the file system handles only a few large files. The positions of the
images are indexed once and cached.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from pvt_det.errors import DataError
from pvt_det.utils.files import open_atomically
from pvt_det.utils.paths import cache_folder
from pvt_det.utils.text import UNPRINTABLE, counted

logger = logging.getLogger(__name__)

# Limits of a shard. Without them, a file of a few bytes could make the index or an image take all memory.
_MAX_CLASSES = 1_000_000
_MAX_IMAGE_BYTES = 2**28
_MAX_LABEL_BYTES = 2**20  # a .json may hold other metadata
_MAX_HEADER_BYTES = 2**20
_MAX_NAME_BYTES = 255
_MAX_MEMBERS = 10_000_000
# Part of the name of a cached index. Increase it when the rules for members or labels change.
_INDEX_VERSION = 2
_Index = dict[str, np.ndarray]


def find_shards(root: Path, names: Sequence[str]) -> list[Path]:
    """Find the tar files of a split.

    Args:
        root: Folder of the data set.
        names: Possible names of the split. The first one with any files is used.

    Returns:
        Sorted tar files in `root` with the split's name as a word of their name, such as `set-val-0000.tar` or
        `val2017.tar`, but not `interval.tar` or `trainval.tar`. If there are none, all tar files in `root/<name>`. The
        list may be empty.
    """
    for name in names:
        word = re.compile(rf"(?<![a-z]){name}(?![a-z])", re.IGNORECASE)
        named = sorted(path for path in root.glob("*.tar") if word.search(path.stem))
        if shards := named or sorted((root / name).glob("*.tar")):
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
        largest = int(self.labels.argmax())
        names = _class_names(shards[0].parent) if classes is None else classes
        self.classes = tuple(names or map(str, range(self.labels[largest] + 1)))
        if self.labels[largest] >= len(self.classes):
            raise DataError(
                f"{self.name(largest)} has the label {self.labels[largest]}, but there "
                f"{'is' if len(self.classes) == 1 else 'are'} only {counted(len(self.classes), 'class', 'classes')}. "
                "Labels start at 0."
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
        content = os.pread(self._files[shard], size, offset)
        if len(content) < size:
            raise OSError(f"{self.name(index)} is cut short")
        return content

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
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{path}: cannot be read as UTF-8 text ({error}). Expected a class per line."
                ) from error
            return [line.strip() for line in lines if line.strip()]
    return None


def _load_index(shards: Sequence[Path]) -> _Index:
    """Return names, places (N×3: shard, offset, size) and labels of all images, cached if possible."""
    try:
        identity = [(str(shard), (stat := shard.stat()).st_size, stat.st_mtime_ns) for shard in shards]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    digest = hashlib.sha256(json.dumps([_INDEX_VERSION, identity]).encode()).hexdigest()[:20]
    cached = cache_folder() / "shards" / f"{digest}.npz"
    if (index := _cached_index(cached, [size for _, size, _ in identity])) is not None:
        return index
    logger.info("Indexing %s in %s", counted(len(shards), "shard"), shards[0].parent)
    rows = [(number, sample) for number, shard in enumerate(shards) for sample in _index_shard(shard)]
    index = {
        "keys": np.asarray([os.fsencode(sample.name) for _, sample in rows], dtype=np.bytes_),
        "places": np.asarray([(number, sample.offset, sample.size) for number, sample in rows], dtype=np.int64),
        "labels": np.asarray([sample.label for _, sample in rows], dtype=np.int64),
    }
    _save_index(cached, index)
    return index


def _cached_index(path: Path, shard_sizes: Sequence[int]) -> _Index | None:
    """Return a cached index, or None if there is none or it is damaged."""
    try:
        # The zip format has checksums, so flipped bits are found as well.
        with np.load(path, allow_pickle=False) as file:
            index = {name: file[name] for name in ("keys", "places", "labels")}
        if problem := _index_problem(index, np.asarray(shard_sizes)):
            raise ValueError(problem)
    except FileNotFoundError:
        return None
    # On a damaged file, the readers of NumPy and zip can raise nearly any exception.
    except Exception as error:
        logger.warning("%s: the index of the shards is damaged (%s). It is built again.", path, error)
        return None
    return index


def _index_problem(index: _Index, shard_sizes: np.ndarray) -> str:
    keys, places, labels = index["keys"], index["places"], index["labels"]
    count = len(labels)
    if not count or (keys.dtype.kind, keys.shape, places.shape, labels.shape) != ("S", (count,), (count, 3), (count,)):
        return "its arrays do not belong together"
    if (
        places.dtype != np.int64
        or labels.dtype != np.int64
        or places.min() < 0
        or places[:, 0].max() >= len(shard_sizes)
    ):
        return "a position is not valid"
    if (places[:, 1] + places[:, 2] > shard_sizes[places[:, 0]]).any():
        return "an image extends beyond its shard"
    return "" if labels.min() >= 0 and labels.max() < _MAX_CLASSES else "a label is out of range"


def _save_index(path: Path, index: _Index) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomically(path) as file:
            np.savez(file, allow_pickle=False, **index)
    except OSError as error:
        logger.warning("%s: cannot be written (%s). Every start will index the shards again.", path, error.strerror)


@dataclass(slots=True)
class _Sample:
    """The members of a shard with one key. `problem` says why the label in a `.json` cannot be used."""

    name: str = ""
    offset: int = 0
    size: int = 0
    label: int = -1
    has_cls: bool = False
    problem: str = ""


def _index_shard(shard: Path) -> list[_Sample]:
    """Return the labeled images of a shard."""
    samples: dict[str, _Sample] = {}
    with _open_shard(shard) as file:
        for member in _members(shard, file):
            # As in WebDataset, the key ends at the first dot of the file name.
            folder, _, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            key, extension = f"{folder}/{stem}", (dot + extension).lower()
            is_image = extension.endswith(IMG_EXTENSIONS)
            if not member.isreg() or not (is_image or extension in (".cls", ".json")):
                continue
            if problem := _member_problem(member, _MAX_IMAGE_BYTES if is_image else _MAX_LABEL_BYTES, file.size):
                raise DataError(f"{shard}: {member.name} {problem}. Write the shard again.")
            sample = samples.setdefault(key, _Sample())
            if is_image:
                if sample.name:
                    raise DataError(
                        f"{shard}: {sample.name} and {member.name} are two images with one label. Rename one."
                    )
                sample.name, sample.offset, sample.size = member.name, member.offset_data, member.size
            else:
                content = os.pread(file.fileno(), member.size, member.offset_data)
                _add_label(shard, sample, member.name, extension, content)
    return _labeled(shard, samples)


def _labeled(shard: Path, samples: dict[str, _Sample]) -> list[_Sample]:
    images = [(key, sample) for key, sample in samples.items() if sample.name]
    for key, sample in images:
        if sample.label < 0:
            raise DataError(
                sample.problem
                or f"{shard}: {sample.name} has no label. Expected {key.lstrip('/')}.cls or .json with it."
            )
    if not images:
        raise DataError(f"{shard}: contains no images. Expected files such as 000000.jpg and 000000.cls.")
    return [sample for _, sample in images]


class _ShardFile(io.FileIO):
    """A shard whose headers are limited in size, because `tarfile` reads as much as a header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise OSError(f"a header claims {size:,} bytes")
        return super().read(size) or b""


def _open_shard(shard: Path) -> _ShardFile:
    try:
        return _ShardFile(shard)
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}).") from error


def _members(shard: Path, file: _ShardFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a shard, with checked names and sizes that are not negative."""
    last, count = "the first member", 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member
                count += 1
                if count > _MAX_MEMBERS:
                    raise DataError(f"{shard}: has more than {_MAX_MEMBERS:,} members. Split it into several shards.")
                if UNPRINTABLE.search(member.name) or len(member.name.encode()) > _MAX_NAME_BYTES:
                    raise DataError(
                        f"{shard}: the member name {member.name[:100]!r} is not valid. Expected printable characters, "
                        f"at most {_MAX_NAME_BYTES} bytes in UTF-8. Rename it."
                    )
                # tarfile would go backward and read the same members forever.
                if member.size < 0:
                    raise DataError(f"{shard}: {member.name} has a negative size. Write the shard again.")
                yield member
                last = f"the member after {member.name}"
            # tarfile takes a damaged header for the end, which would drop the remaining images.
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("a damaged header or a missing end-of-archive block")
    except DataError:
        raise
    # On a broken file, tarfile can raise nearly any exception.
    except Exception as error:
        raise DataError(f"{shard}: cannot be read as a tar file, at {last} ({error}). Copy it again.") from error


def _member_problem(member: tarfile.TarInfo, most: int, shard_size: int) -> str:
    if member.issparse():
        return "is a sparse file, which may expand to any size"
    if member.size > most:
        return f"has {member.size:,} bytes. Expected at most {most:,}"
    return "is cut short" if member.offset_data + member.size > shard_size else ""


def _add_label(shard: Path, sample: _Sample, name: str, extension: str, content: bytes) -> None:
    """Add a label to a sample. A `.cls` is preferred to a `.json`, in which a label is optional."""
    if extension == ".cls" and sample.has_cls:
        raise DataError(f"{shard}: {name} appears twice. Write the shard again.")
    label = _cls_label(content) if extension == ".cls" else _json_label(content)
    problem = f"{shard}: {name} {label}. Expected an integer from 0 to {_MAX_CLASSES - 1:,}"
    if extension == ".cls":
        if isinstance(label, str):
            raise DataError(f"{problem}, such as 17. Correct the label.")
        sample.label, sample.has_cls = label, True
    elif not sample.has_cls:
        if isinstance(label, str):
            sample.problem = f'{problem}, as in {{"label": 17}}. Correct it, or add a .cls file.'
        else:
            sample.label = label


def _cls_label(content: bytes) -> int | str:
    """Return the label, or a phrase that says what the file has instead."""
    text = content.strip()
    if not re.fullmatch(rb"\d{1,9}", text):
        return f"has the label {text[:20].decode(errors='backslashreplace')!r}"
    return _in_range(int(text))


def _json_label(content: bytes) -> int | str:
    """Return the label, or a phrase that says what the file has instead."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON ({str(error)[:100]})"
    if not isinstance(data, dict) or "label" not in data:
        return "has no 'label'"
    label = data["label"]
    if type(label) is not int:
        return f"has a label of type {type(label).__name__}"
    return _in_range(label)


def _in_range(label: int) -> int | str:
    if 0 <= label < _MAX_CLASSES:
        return label
    # Shown only if short: Python limits how many digits it converts.
    return f"has the label {label}" if abs(label) < 10**18 else "has a label of more than 18 digits"
