"""Where a file is: a file of this machine, a member of a shard, or an object of an object store.

A reference is a path or URL. References to files in shards look like those to individual files: the image `a.jpg` of
the folder of shards `x/shards` is `x/shards/a.jpg`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pvt_det.data.storage import remote
from pvt_det.data.storage.ranges import Facts, Range
from pvt_det.data.storage.references import Reference, is_url, join, split
from pvt_det.data.storage.shards import DESCRIPTION, Description, LocalParts, ShardFolder, parse_index
from pvt_det.errors import DataError
from pvt_det.utils import paths

logger = logging.getLogger(__name__)

_Identity = tuple[int, int]


class Place(Protocol):
    """A folder of files that are not individual local files.

    Attributes:
        root: The folder, a path or URL without "/" at the end.
    """

    root: str

    def fault(self, name: str) -> str:
        """Say why a file cannot be read; "" if nothing is known against it.

        Args:
            name: Name of the file in the folder.
        """
        ...

    def read(self, name: str) -> bytes:
        """Read a file.

        Args:
            name: Name of the file in the folder.

        Raises:
            DataError: The file cannot be read.
        """
        ...

    def size(self, name: str) -> tuple[int, int] | None:
        """Return width and height of an image in pixels after EXIF rotation, if they are known without reading it.

        Args:
            name: Name of the file in the folder.

        Raises:
            DataError: The file does not exist.
        """
        ...

    def length(self, name: str) -> int:
        """Return the size of a file in bytes, or -1 if it is not known.

        Args:
            name: Name of the file in the folder.
        """
        ...

    def names(self) -> list[str] | None:
        """Return the sorted names of all files, or None if they cannot be listed."""
        ...

    def range(self, name: str) -> Range | None:
        """Return the part of an object that `read` needs, or None if it needs none.

        Args:
            name: Name of the file in the folder.

        Raises:
            DataError: The file does not exist.
        """
        ...


# The places that this process knows, by root, and which state of a local one was read.
_places: dict[str, Place] = {}
_identities: dict[str, _Identity] = {}
# Copies of annotation files, by URL.
_copies: dict[str, tuple[Path, Facts]] = {}


def attach(root: Reference) -> Place | None:
    """Look at a folder, and return the place that it is.

    A folder of an object store is looked at once until `forget_remote` is called, so that changes during a run are
    errors.

    Args:
        root: The folder, a path or URL.

    Returns:
        The place, or None for a folder of individual local files and for one that does not exist.

    Raises:
        ConfigError: The URL contains credentials, or object stores need a package that is not installed.
        DataError: It is a folder of shards that cannot be used, or a URL that cannot be read.
    """
    if is_url(root):
        url = str(root).rstrip("/")
        if url not in _places:
            _places[url] = _open_url(url)
        return _places[url]
    root = str(Path(root))
    identity = _identity(Path(root) / DESCRIPTION)
    if identity is None:
        _places.pop(root, None)
        _identities.pop(root, None)
        return None
    if _identities.get(root) != identity:
        _places[root] = open_local_shards(Path(root))
        _identities[root] = identity
    return _places[root]


def forget_remote() -> None:
    """Forget the state of all folders in object stores. Call it before a run, which may find them changed."""
    for root in [root for root in _places if is_url(root)]:
        del _places[root]
    _copies.clear()


def find(reference: Reference) -> tuple[Place, str] | None:
    """Return the place of a file and its name there, or None for an individual local file or none at all.

    Args:
        reference: The file, a path or URL.

    Raises:
        DataError: It is in a folder of shards that cannot be used.
    """
    text = os.fspath(reference)
    known = [root for root in _places if text.startswith(root) and text[len(root) : len(root) + 1] in ("/", os.sep)]
    if known:
        root = max(known, key=len)
        return _places[root], text[len(root) + 1 :].replace(os.sep, "/")
    if is_url(text):
        return _find_url(text)
    if _identity(Path(text)) is not None:
        return None
    # A process that was started afresh does not know the places of the process that started it.
    for folder in Path(text).parents:
        if has_shards(folder) and (place := attach(folder)):
            return place, Path(text).relative_to(folder).as_posix()
    return None


def read_content(reference: Reference) -> bytes | None:
    """Read a file that is not an individual local file.

    Args:
        reference: The file, a path or URL.

    Returns:
        Its content, or None for a local file, which the caller reads, and for one that does not exist.

    Raises:
        DataError: The file cannot be read.
    """
    found = find(reference)
    return None if found is None else found[0].read(found[1])


def file_fault(reference: Reference) -> str:
    """Say why a file cannot be read, as `pvt_det.utils.paths.file_fault` does for local files.

    Args:
        reference: The file, a path or URL.

    Returns:
        A phrase that follows the reference in a message, such as "does not exist"; "" if it can be read.

    Raises:
        DataError: It is in a folder of shards that cannot be used.
    """
    found = find(reference)
    return paths.file_fault(reference) if found is None else found[0].fault(found[1])


def folder_fault(root: Reference) -> str:
    """Say why a folder of files cannot be used, as `pvt_det.utils.paths.folder_fault` does for local folders.

    Args:
        root: The folder, a path or URL.

    Returns:
        A phrase that follows the reference in a message, such as "does not exist"; "" if it can be read.

    Raises:
        DataError: It is a folder of shards that cannot be used.
    """
    if (place := attach(root)) is None:
        return paths.folder_fault(root)
    return "is empty or does not exist" if place.names() == [] else ""


def knows_headers(root: Reference) -> bool:
    """Return whether the headers of the images in a folder can be read fast, and log it if not.

    Args:
        root: The folder, a path or URL.

    Raises:
        DataError: It is a folder of shards that cannot be used, or a URL that cannot be read.
    """
    if not isinstance(attach(root), remote.ObjectFolder):
        return True
    logger.info(
        "%s: the images are checked when they are used. To check all of them before, use DATASETS.CHECK full, or "
        "shards (pvt-det shard).",
        root,
    )
    return False


def image_size(reference: Reference) -> tuple[int, int] | None:
    """Return the width and height of an image if they are known without reading it.

    Args:
        reference: The image, a path or URL.

    Returns:
        Width and height in pixels after EXIF rotation, or None if the file has to be read.

    Raises:
        DataError: The image is not in its folder of shards, or the folder cannot be used.
    """
    found = find(reference)
    return None if found is None else found[0].size(found[1])


def file_length(reference: Reference) -> int:
    """Return the size of a file in bytes, or -1 if it cannot be determined.

    Args:
        reference: The file, a path or URL.
    """
    try:
        found = find(reference)
        return Path(reference).stat().st_size if found is None else found[0].length(found[1])
    except (OSError, DataError):
        return -1


def list_folder(root: Reference) -> list[str]:
    """Return the sorted references of the files in a folder, without those in its subfolders.

    Args:
        root: The folder, a path or URL.

    Raises:
        DataError: The folder does not exist or cannot be used.
    """
    if place := attach(root):
        if (names := place.names()) is None:
            raise DataError(f"the server of {root} cannot list folders. Give a folder of shards or one in a store.")
        return [join(root, name) for name in names if "/" not in name]
    if fault := paths.folder_fault(root):
        raise DataError(f"folder {root} {fault}")
    return sorted(map(str, Path(root).iterdir()))


def has_shards(folder: Reference) -> bool:
    """Return whether a local folder is a folder of shards.

    Args:
        folder: Any path.
    """
    return _identity(Path(folder) / DESCRIPTION) is not None


def local_file(reference: Reference) -> Path:
    """Return a file of this machine for an annotation file.

    Args:
        reference: The file, a path or URL, or a folder of shards with an annotation file.

    Raises:
        DataError: It is a folder of shards that cannot be used or has no annotations.
    """
    if is_url(reference) and str(reference).lower().endswith(".json"):
        return _copy(str(reference))
    place = attach(reference)
    if not isinstance(place, ShardFolder):
        return Path(reference)
    if (annotations := place.description.annotations) is None:
        raise DataError(
            f"the folder of shards {reference} has no annotations. Give a JSON file, or write the shards with --json."
        )
    name = join(reference, annotations.name)
    return _copy(name, annotations.sha256) if is_url(reference) else Path(name)


def prefetch(references: Iterable[Reference]) -> None:
    """Begin to fetch files that will be read soon, if they are in an object store. Returns at once.

    Args:
        references: The files, in the order in which they will be needed.
    """
    ranges = []
    for reference in references:
        # Whoever reads the file gets the error.
        with suppress(DataError):
            found = find(reference)
            if found and (wanted := found[0].range(found[1])):
                ranges.append(wanted)
    if ranges:
        remote.fetch_later(ranges)


def read_description(folder: Reference) -> Description:
    """Read the description of a folder of shards.

    Args:
        folder: The folder, a path or URL.

    Raises:
        ConfigError: The URL contains credentials, or object stores need a package that is not installed.
        DataError: The folder has no description, or it cannot be read.
    """
    source = join(folder, DESCRIPTION)
    try:
        if is_url(folder):
            remote.refuse_credentials(str(folder))
            remote.renew()
            content = remote.read_object(source)
        else:
            content = Path(source).read_bytes()
    except (FileNotFoundError, NotADirectoryError, remote.Absent) as error:
        raise DataError(
            f"{folder} is not a complete folder of shards, because it has no {DESCRIPTION}. Write it with pvt-det "
            "shard, which continues an interrupted command."
        ) from error
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror})") from error
    return Description.parse(content, source)


def open_local_shards(folder: Path) -> ShardFolder:
    """Open a folder of shards of this machine.

    Args:
        folder: The folder, which has a description.

    Raises:
        DataError: The description, the index or a shard is missing or damaged, or has a different size.
    """
    description = read_description(folder)
    try:
        index = (folder / description.index.name).read_bytes()
        lengths = [(folder / shard.name).stat().st_size for shard in description.shards]
    except OSError as error:
        raise DataError(
            f"the folder of shards {folder} is not complete: {error.filename} cannot be read ({error.strerror}). Copy "
            "it again."
        ) from error
    for shard, length in zip(description.shards, lengths, strict=True):
        if length != shard.size:
            raise DataError(
                f"shard {folder / shard.name} has {length:,} bytes, but {DESCRIPTION} says {shard.size:,}. Copy it "
                "again."
            )
    if hashlib.sha256(index).hexdigest() != description.index.sha256:
        raise DataError(
            f"index {folder / description.index.name} is not the one that {DESCRIPTION} describes. Copy the folder "
            "again."
        )
    parts = LocalParts([folder / shard.name for shard in description.shards])
    return ShardFolder(str(folder), description, parse_index(index, description, str(folder)), parts)


def _open_url(root: str) -> Place:
    """Open a folder of shards or of individual objects."""
    remote.refuse_credentials(root)
    remote.renew()
    source = join(root, DESCRIPTION)
    try:
        description = Description.parse(remote.read_object(source), source)
    except remote.Absent:
        can_list = not root.lower().startswith("http")
        return remote.ObjectFolder(root, remote.list_objects(root) if can_list else None)
    index_url = join(root, description.index.name)
    index = remote.copy_object(index_url, remote.stat(index_url), description.index.sha256).read_bytes()
    urls = [join(root, shard.name) for shard in description.shards]
    facts = [remote.stat(url) for url in urls]
    for url, found, shard in zip(urls, facts, description.shards, strict=True):
        if found.size != shard.size:
            raise DataError(
                f"shard {url} has {found.size:,} bytes, but {DESCRIPTION} says {shard.size:,}. Copy it there again."
            )
    return ShardFolder(root, description, parse_index(index, description, root), remote.RemoteParts(urls, facts))


def _find_url(url: str) -> tuple[Place, str]:
    """Return the place of an object in a folder that nobody has attached: in shards, or individual."""
    base, path = split(url)
    parts = path.split("/")
    for count in range(len(parts) - 1, -1, -1):
        root = "/".join([base, *parts[:count]])
        with suppress(remote.Absent):
            remote.stat(join(root, DESCRIPTION))
            place = _places[root] = _open_url(root)
            return place, "/".join(parts[count:])
    root = url.rpartition("/")[0]
    _places[root] = remote.ObjectFolder(root, None)
    return _places[root], parts[-1]


def _copy(url: str, sha256: str = "") -> Path:
    """Return a copy of an annotation file, which does not change until `forget_remote` is called."""
    remote.refuse_credentials(url)
    path, facts = _copies.get(url, (None, None))
    if path is None or not path.is_file():
        remote.renew()
        facts = facts or remote.stat(url)
        path = remote.copy_object(url, facts, sha256)
        _copies[url] = (path, facts)
    return path


def _identity(path: Path) -> _Identity | None:
    """Return what changes when a file is written again, or None if it cannot be reached."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return (status.st_size, status.st_mtime_ns)
