"""Write a folder of shards: deterministic, and continued where an interrupted command stopped."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

import numpy as np

from pvt_det.data.coco.findings import Findings
from pvt_det.data.images import measure_image
from pvt_det.data.storage.index import Index, write_index
from pvt_det.data.storage.shards import ANNOTATIONS, CLASSES, DESCRIPTION, INDEX, Description, StoredFile
from pvt_det.data.storage.tar import MAX_IMAGE_BYTES, MAX_NAME_BYTES
from pvt_det.errors import DataError
from pvt_det.utils.digest import file_digest, value_digest
from pvt_det.utils.files import open_atomically, write_atomically
from pvt_det.utils.lock import FolderLock
from pvt_det.utils.paths import ABSENT, file_fault, make_folder
from pvt_det.utils.progress import track
from pvt_det.utils.text import UNPRINTABLE

_THREADS = 8


@dataclass(frozen=True)
class Item:
    """A file to put into the shards.

    Attributes:
        name: Name in the folder of shards.
        path: The file.
        label: Index of its class, or -1.
    """

    name: str
    path: Path
    label: int = -1


@dataclass(frozen=True)
class Settings:
    """How to write shards.

    Attributes:
        shard_size: Size in bytes at which a shard ends.
        check: "fast" reads the header and the last bytes of every image, "full" decodes it.
        on_error: What to do with missing and broken images: "stop" (write no description, and raise an error) or
            "skip" (store broken ones unchanged, and list them).
    """

    shard_size: int
    check: str = "fast"
    on_error: str = "stop"


@dataclass
class _Shard:
    """What is known about a finished shard. It is kept in a file beside it until all shards are finished.

    Attributes:
        plan: Digest of the files that it was written from.
        file: The shard.
        rows: Name, offset, size, width, height and digest of each file.
        unusable: What is wrong with the broken images, by name.
    """

    plan: str
    file: StoredFile
    rows: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)
    unusable: dict[str, str] = field(default_factory=dict)


def write_shards(
    folder: Path,
    content: str,
    items: Sequence[Item],
    settings: Settings,
    *,
    annotations: Path | None = None,
    classes: Sequence[str] = (),
) -> Description:
    """Write a folder of shards.

    The shards depend only on the names and contents of the files and on `settings`. Shards that an interrupted call
    finished are kept if their files have not changed since.

    Args:
        folder: The folder, which is created.
        content: What the files are, one of the constants of `pvt_det.data.storage.shards`.
        items: The files, in the order in which they are stored.
        settings: How to write them.
        annotations: Annotation file in COCO's format to copy into the folder, or None.
        classes: Class names of images with classes.

    Returns:
        The description of the folder.

    Raises:
        ConfigError: The folder cannot be written to.
        DataError: The folder is already complete, two files have the same name, or an image is missing or broken
            and `settings.on_error` is "stop".
    """
    make_folder(folder)
    if (folder / DESCRIPTION).exists():
        raise DataError(
            f"{folder} is already a complete folder of shards. Check it with pvt-det shard --verify {folder}, or "
            "choose another folder."
        )
    _check_names(items, content)
    findings = Findings()
    with FolderLock(folder):
        present = _present(items, findings)
        if not present:
            findings.add("no image file", str(folder), fatal=True)
            findings.raise_if_refused(str(folder), settings.on_error)
        shards = list(_write_all(folder, present, content, settings))
        unusable = {name: problem for shard in shards for name, problem in shard.unusable.items()}
        for problem in unusable.values():
            findings.add("image file that cannot be used", problem)
        findings.raise_if_refused(str(folder), settings.on_error)
        index = _index(shards, {item.name: item.label for item in present} if content == CLASSES else {})
        write_index(folder / INDEX, index)
        copied = None if annotations is None else _copy(annotations, folder / ANNOTATIONS)
        files = tuple(shard.file for shard in shards)
        description = Description(content, files, _stored(folder / INDEX), copied, tuple(classes), unusable)
        write_atomically(folder / DESCRIPTION, description.dump())
        _remove_others(folder, files)
    return description


def _present(items: Sequence[Item], findings: Findings) -> list[Item]:
    """Return the files that exist, and report the others."""
    present = []
    for item in items:
        if fault := file_fault(item.path):
            kind = "image file that is missing" if fault == ABSENT else "image file that cannot be used"
            findings.add(kind, f"{item.path} {fault}")
        else:
            present.append(item)
    return present


def _write_all(folder: Path, items: Sequence[Item], content: str, settings: Settings) -> Iterator[_Shard]:
    """Write all shards that are not finished, and yield what is known about each."""
    with track("writing shards", len(items)) as advance, ThreadPoolExecutor(_THREADS) as pool:
        for number, members in enumerate(_divide(items, settings.shard_size)):
            path = folder / f"shard-{number:05}.tar"
            plan = _plan(members, settings)
            if (shard := _finished(path, plan)) is None:
                shard = _write_shard(path, members, plan, content, settings, pool)
                write_atomically(_record(path), json.dumps(asdict(shard)))
            yield shard
            for _ in members:
                advance()


def _remove_others(folder: Path, shards: Sequence[StoredFile]) -> None:
    """Remove what is needed only until the folder is complete, and shards of calls with other files or settings."""
    others = set(folder.glob("shard-*.tar")) - {folder / shard.name for shard in shards}
    for path in (*others, *folder.glob(".shard-*.json")):
        path.unlink()


def _check_names(items: Sequence[Item], content: str) -> None:
    """Raise an error if a file cannot have its name in a shard, or not next to the others."""
    taken: dict[str, str] = {}
    for item in items:
        if UNPRINTABLE.search(item.name) or len(os.fsencode(item.name)) > MAX_NAME_BYTES:
            raise DataError(
                f"the file name {item.name[:100]!r} is not valid in a shard. Expected printable characters, at most "
                f"{MAX_NAME_BYTES} bytes. Rename the file."
            )
        key = _key(item.name) if content == CLASSES else item.name
        if key in taken:
            raise DataError(
                f"{taken[key]} and {item.name} cannot be in the same shards, because their names up to the first dot "
                "are equal. Rename one."
            )
        taken[key] = item.name


def _key(name: str) -> str:
    """Return the name of a WebDataset sample, which ends at the first dot of the file's name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _divide(items: Sequence[Item], shard_size: int) -> Iterator[list[Item]]:
    members: list[Item] = []
    total = 0
    for item in items:
        size = item.path.stat().st_size
        if members and total + size > shard_size:
            yield members
            members, total = [], 0
        members.append(item)
        total += size
    yield members


def _plan(items: Sequence[Item], settings: Settings) -> str:
    """Return a digest that changes if a shard would be written differently."""
    states = [(item.path.stat().st_size, item.path.stat().st_mtime_ns) for item in items]
    return value_digest([[(item.name, item.label) for item in items], states, settings.check])


def _record(shard: Path) -> Path:
    return shard.with_name(f".{shard.stem}.json")


def _finished(path: Path, plan: str) -> _Shard | None:
    """Return what an interrupted call recorded about a shard, or None if it has to be written."""
    try:
        data = json.loads(_record(path).read_text(encoding="utf-8"))
        data["file"] = StoredFile(**data["file"])
        data["rows"] = [tuple(row) for row in data["rows"]]
        shard = _Shard(**data)
        is_whole = shard.plan == plan and file_digest(path) == shard.file.sha256
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return shard if is_whole else None


class _HashingFile:
    """A file to write to that computes its SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self.size = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self._hash.update(content)
        self.size += len(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self.size

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _write_shard(
    path: Path, items: Sequence[Item], plan: str, content: str, settings: Settings, pool: ThreadPoolExecutor
) -> _Shard:
    rows, unusable = [], {}
    with open_atomically(path) as raw:
        file = _HashingFile(raw)
        with tarfile.open(fileobj=cast(IO[bytes], file), mode="w:", format=tarfile.PAX_FORMAT) as tar:
            checked = pool.map(lambda item: _read(item, settings.check), items)
            for item, (data, size, problem) in zip(items, checked, strict=True):
                if problem:
                    unusable[item.name] = problem
                start = _add(tar, item.name, data)
                digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
                rows.append((item.name, start, len(data), *size, digest))
                if content == CLASSES:
                    _add(tar, f"{_key(item.name)}.cls", str(item.label).encode())
    return _Shard(plan, StoredFile(path.name, file.size, file.hexdigest()), rows, unusable)


def _read(item: Item, check: str) -> tuple[bytes, tuple[int, int], str]:
    """Return the content of a file, the size of the image, and what is wrong with it."""
    try:
        data = item.path.read_bytes()
    except OSError as error:
        raise DataError(f"image {item.path} cannot be read ({error.strerror})") from error
    try:
        if len(data) > MAX_IMAGE_BYTES:
            raise DataError(f"image {item.name} has {len(data):,} bytes. Expected at most {MAX_IMAGE_BYTES:,}")
        return data, measure_image(data, item.name, decode=check == "full"), ""
    except DataError as error:
        return data, (0, 0), str(error)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file that has no owner and time, and return the position of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return int(tar.offset) - blocks * tarfile.BLOCKSIZE


def _index(shards: Sequence[_Shard], labels: Mapping[str, int]) -> Index:
    """Return the index of all shards, with labels unless there are none."""
    rows = [(number, row) for number, shard in enumerate(shards) for row in shard.rows]
    index: Index = {
        "keys": np.asarray([os.fsencode(row[0]) for _, row in rows], dtype=np.bytes_),
        "places": np.asarray([(number, row[1], row[2]) for number, row in rows], dtype=np.int64),
        "sizes": np.asarray([row[3:5] for _, row in rows], dtype=np.int32),
        "digests": np.asarray([row[5] for _, row in rows], dtype=np.uint64),
    }
    if labels:
        index["labels"] = np.asarray([labels[row[0]] for _, row in rows], dtype=np.int64)
    return index


def _copy(source: Path, target: Path) -> StoredFile:
    with open_atomically(target) as copy, source.open("rb") as original:
        shutil.copyfileobj(original, copy)
    return _stored(target)


def _stored(path: Path) -> StoredFile:
    return StoredFile(path.name, path.stat().st_size, file_digest(path))
