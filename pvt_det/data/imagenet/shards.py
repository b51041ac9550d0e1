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
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from pvt_det.data.storage.index import MAX_CLASSES, Index, read_index, write_index
from pvt_det.data.storage.references import join
from pvt_det.data.storage.remote import fetch_later
from pvt_det.data.storage.shards import LocalParts, Parts, ShardFolder
from pvt_det.data.storage.tar import MAX_IMAGE_BYTES, member_problem, members, open_shard
from pvt_det.errors import DataError
from pvt_det.utils.paths import cache_folder
from pvt_det.utils.text import counted, did_you_mean

logger = logging.getLogger(__name__)

_MAX_LABEL_BYTES = 2**20  # a .json may hold other metadata
# Part of the name of a cached index. Increase it when the rules for members or labels change.
_INDEX_VERSION = 2
_ARRAYS = ("keys", "places", "labels")


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
        shards: Names of the tar files, for messages.
        index: Names, places and labels of the images.
        parts: Reads the tar files.
        classes: Class names. A label is an index into them.
        identity: The digest that tells these images from others, 64 hex digits.

    Raises:
        DataError: A label is out of range.
    """

    def __init__(
        self, shards: Sequence[str], index: Index, parts: Parts, classes: Sequence[str], identity: str
    ) -> None:
        self._shards, self._index, self._parts, self._identity = shards, index, parts, identity
        self.labels = index["labels"]
        self.classes = tuple(classes)
        largest = int(self.labels.argmax())
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
            StorageError: The shard is in an object store and has changed or cannot be read.
        """
        try:
            return self._parts.read(*self._place(index))
        except OSError as error:
            raise OSError(f"{self.name(index)} cannot be read ({error})") from error

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to fetch images that will be read soon, if they are in an object store. Returns at once.

        Args:
            indices: Indices of the images, in the order in which they will be needed.
        """
        ranges = [self._parts.range(*self._place(index)) for index in indices]
        fetch_later([each for each in ranges if each is not None])

    def name(self, index: int) -> str:
        """Return the shard of an image and its name in the shard.

        Args:
            index: Index of the image.
        """
        return f"{self._shards[self._index['places'][index][0]]}: {os.fsdecode(bytes(self._index['keys'][index]))}"

    def digest(self) -> str:
        """Return the SHA-256 of what tells these images from others, as 64 hex digits, wherever they are."""
        return self._identity

    def _place(self, index: int) -> tuple[int, int, int, int | None]:
        """Return shard, offset, size and digest of an image."""
        shard, offset, size = (int(value) for value in self._index["places"][index])
        digests = self._index.get("digests")
        return shard, offset, size, None if digests is None else int(digests[index])


def open_tars(shards: Sequence[Path], classes: Sequence[str] | None = None) -> ShardImages:
    """Open tar files in WebDataset's layout.

    Args:
        shards: The tar files.
        classes: Class names. By default they come from `classes.txt`, one per line, in the shards' folder or its
            parent. If that file does not exist, they are the numbers from 0 to the largest label.

    Raises:
        DataError: A shard cannot be read, an image has no label, or a label is out of range.
    """
    paths = [shard.resolve() for shard in shards]
    index = _load_index(paths)
    names = _class_names(shards[0].parent) if classes is None else classes
    names = names or list(map(str, range(int(index["labels"].max()) + 1)))
    arrays = (index[name].tobytes() for name in _ARRAYS)
    identity = hashlib.sha256(b"".join(arrays)).hexdigest()
    return ShardImages([str(path) for path in paths], index, LocalParts(paths), names, identity)


def open_folder(place: ShardFolder, classes: Sequence[str] | None = None) -> ShardImages:
    """Open a folder of shards that `pvt-det shard` has written from class folders.

    Args:
        place: The folder of shards.
        classes: Class names in the order that a model was trained with. By default those of the shards.

    Raises:
        DataError: The shards have no classes, or a class is unknown.
    """
    own = place.description.classes
    if not own:
        raise DataError(f"{place.root}: the shards have no classes. Write them with pvt-det shard --classes.")
    classes = own if classes is None else classes
    if unknown := sorted(set(own) - set(classes)):
        raise DataError(
            f"{place.root}: {len(unknown)} of the {len(own)} classes, such as {unknown[0]}, are not among the "
            f"{len(classes)} classes of the training images or the model.{did_you_mean(unknown[0], classes)}"
        )
    to_label = np.asarray([list(classes).index(name) for name in own])
    index = place.index | {"labels": to_label[place.index["labels"]]}
    # The same as that of class folders with these images.
    identity = hashlib.sha256(index["keys"].tobytes() + index["labels"].tobytes()).hexdigest()
    shards = [join(place.root, shard.name) for shard in place.description.shards]
    return ShardImages(shards, index, place.parts, classes, identity)


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


def _load_index(shards: Sequence[Path]) -> Index:
    """Return names, places (N×3: shard, offset, size) and labels of all images, cached if possible."""
    try:
        identity = [(str(shard), (stat := shard.stat()).st_size, stat.st_mtime_ns) for shard in shards]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    digest = hashlib.sha256(json.dumps([_INDEX_VERSION, identity]).encode()).hexdigest()[:20]
    cached = cache_folder() / "shards" / f"{digest}.npz"
    try:
        return read_index(cached, [size for _, size, _ in identity], _ARRAYS)
    except FileNotFoundError:
        pass
    except ValueError as error:
        logger.warning("%s: the index of the shards is damaged (%s). It is built again.", cached, error)
    logger.info("Indexing %s in %s", counted(len(shards), "shard"), shards[0].parent)
    rows = [(number, sample) for number, shard in enumerate(shards) for sample in _index_shard(shard)]
    index = {
        "keys": np.asarray([os.fsencode(sample.name) for _, sample in rows], dtype=np.bytes_),
        "places": np.asarray([(number, sample.offset, sample.size) for number, sample in rows], dtype=np.int64),
        "labels": np.asarray([sample.label for _, sample in rows], dtype=np.int64),
    }
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_index(cached, index)
    except OSError as error:
        logger.warning("%s: cannot be written (%s). Every start will index the shards again.", cached, error.strerror)
    return index


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
    with open_shard(shard) as file:
        for member in members(shard, file):
            # As in WebDataset, the key ends at the first dot of the file name.
            folder, _, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            key, extension = f"{folder}/{stem}", (dot + extension).lower()
            is_image = extension.endswith(IMG_EXTENSIONS)
            if not member.isreg() or not (is_image or extension in (".cls", ".json")):
                continue
            if problem := member_problem(member, MAX_IMAGE_BYTES if is_image else _MAX_LABEL_BYTES, file.size):
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


def _add_label(shard: Path, sample: _Sample, name: str, extension: str, content: bytes) -> None:
    """Add a label to a sample. A `.cls` is preferred to a `.json`, in which a label is optional."""
    if extension == ".cls" and sample.has_cls:
        raise DataError(f"{shard}: {name} appears twice. Write the shard again.")
    label = _cls_label(content) if extension == ".cls" else _json_label(content)
    problem = f"{shard}: {name} {label}. Expected an integer from 0 to {MAX_CLASSES - 1:,}"
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
    if 0 <= label < MAX_CLASSES:
        return label
    # Shown only if short: Python limits how many digits it converts.
    return f"has the label {label}" if abs(label) < 10**18 else "has a label of more than 18 digits"
