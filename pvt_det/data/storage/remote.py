"""Folders in object stores and on web servers, read through the cache.

A process of its own makes the requests (`pvt_det.data.storage.fetcher`). It is started when the first object is needed,
and serves the data loader workers that are forked later as well.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from pvt_det.data.storage.cache import SIZE_VARIABLE, Cache, cache_limit
from pvt_det.data.storage.ranges import Facts, Range
from pvt_det.data.storage.references import is_url, join, shown
from pvt_det.errors import ConfigError, DataError, StorageError
from pvt_det.utils.extras import require_packages
from pvt_det.utils.paths import ABSENT

_ATTEMPTS = 3
_PATIENCE = 2.0  # seconds
_MODULE = "pvt_det.data.storage.fetcher"
# Environment variables of the providers and of this package.
_SETTINGS = ("AWS_", "AZURE_", "GOOGLE_", "PVT_DET_")


class Absent(DataError):
    """An object does not exist."""


@dataclass
class _Server:
    """The fetching process, as this process and its children know it."""

    process: subprocess.Popen[bytes]
    address: str
    key: bytes
    cache: Cache
    settings: dict[str, str]
    owner: int = field(default_factory=os.getpid)


_server: _Server | None = None
_starting = threading.Lock()
_local = threading.local()


class RemoteParts:
    """Reads byte ranges of shards in an object store.

    Args:
        urls: URLs of the shards.
        facts: Facts of each shard.
    """

    def __init__(self, urls: Sequence[str], facts: Sequence[Facts]) -> None:
        self._urls, self._facts = urls, facts

    def range(self, shard: int, offset: int, size: int, digest: int | None = None) -> Range:
        """Return what `read` with the same arguments asks for.

        Args:
            shard: Number of the shard.
            offset: Position of the first byte.
            size: Number of bytes.
            digest: First 8 bytes of the SHA-256 that the bytes must have, or None.
        """
        facts = self._facts[shard]
        return Range(self._urls[shard], offset, size, facts.size, facts.tag, digest)

    def read(self, shard: int, offset: int, size: int, digest: int | None = None) -> bytes:
        """Read a byte range.

        Args:
            shard: Number of the shard.
            offset: Position of the first byte.
            size: Number of bytes.
            digest: First 8 bytes of the SHA-256 that the bytes must have, or None.

        Raises:
            StorageError: The shard has changed or cannot be read.
        """
        return read_range(self.range(shard, offset, size, digest))


class ObjectFolder:
    """A folder of individual files in an object store or on a web server.

    Args:
        root: URL of the folder.
        facts: Facts of the files by name, or None for a web server, which cannot list folders.
    """

    def __init__(self, root: str, facts: Mapping[str, Facts] | None) -> None:
        self.root, self._listed = root, facts
        self._known: dict[str, Facts] = dict(facts or {})

    def fault(self, name: str) -> str:
        """Say why a file cannot be read.

        Args:
            name: Name of the file in the folder.

        Returns:
            "does not exist", or "" if nothing is known against it.
        """
        return ABSENT if self._listed is not None and name not in self._listed else ""

    def read(self, name: str) -> bytes:
        """Read a file.

        Args:
            name: Name of the file in the folder.

        Raises:
            StorageError: The file has changed or cannot be read.
        """
        return read_range(self.range(name))

    def range(self, name: str) -> Range:
        """Return what `read` asks for.

        Args:
            name: Name of the file in the folder.

        Raises:
            StorageError: The file does not exist.
        """
        url = join(self.root, name)
        if name not in self._known:
            if self._listed is not None:
                raise Absent(f"{shown(url)} {ABSENT}")
            self._known[name] = stat(url)
        facts = self._known[name]
        return Range(url, 0, facts.size, facts.size, facts.tag)

    def size(self, name: str) -> tuple[int, int] | None:
        """Return None, because the size of an image is not known without reading it.

        Args:
            name: Name of the file in the folder.
        """
        return None

    def length(self, name: str) -> int:
        """Return the size of a file in bytes, or -1 if it is not listed.

        Args:
            name: Name of the file in the folder.
        """
        return self._known[name].size if name in self._known else -1

    def names(self) -> list[str] | None:
        """Return the sorted names of all files, or None if the server cannot list them."""
        return None if self._listed is None else sorted(self._listed)


def read_range(wanted: Range) -> bytes:
    """Read a part of an object through the cache.

    Args:
        wanted: The part.

    Raises:
        StorageError: The object has changed or cannot be read.
    """
    cache = _started().cache
    for _ in range(_ATTEMPTS):
        content = cache.read(wanted.key, wanted.size, wanted.digest)
        if content is not None:
            return content
        _ask("fetch", list(astuple(wanted)))
    raise StorageError(
        f"{shown(wanted.url)} was fetched {_ATTEMPTS} times, but its entry in {cache.folder} was damaged or removed "
        f"each time. Check the disk, and allow more space with the environment variable {SIZE_VARIABLE} "
        f"({cache.limit:,} bytes now)."
    )


def fetch_later(ranges: Sequence[Range]) -> None:
    """Begin to fetch parts of objects that will be read soon. Returns at once.

    Args:
        ranges: The parts, in the order in which they will be needed.
    """
    if not ranges:
        return
    cache = _started().cache
    if missing := [astuple(each) for each in ranges if not cache.has(each.key)]:
        _ask("later", missing, has_answer=False)


def stat(url: str) -> Facts:
    """Return the facts of an object.

    Args:
        url: Its URL.

    Raises:
        Absent: It does not exist.
        StorageError: It cannot be read.
    """
    return Facts(*_ask("stat", [url]))


def list_objects(url: str) -> dict[str, Facts]:
    """Return the facts of all objects in a folder and its subfolders, by their names relative to it.

    Args:
        url: URL of the folder.

    Raises:
        StorageError: It cannot be listed.
    """
    return {name: Facts(size, tag) for name, size, tag in _ask("list", [url])}


def copy_object(url: str, facts: Facts, sha256: str = "") -> Path:
    """Copy an object into a file of the cache, unless a whole copy is there.

    Args:
        url: Its URL.
        facts: Facts that it must have.
        sha256: SHA-256 that it must have, or "".

    Raises:
        StorageError: It has changed or cannot be read.
    """
    return Path(_ask("copy", [url, facts.size, facts.tag, sha256]))


def digest_object(url: str) -> str:
    """Compute the SHA-256 of an object, which is read from the store.

    Args:
        url: Its URL.

    Returns:
        The digest as 64 hex digits.

    Raises:
        Absent: It does not exist.
        StorageError: It cannot be read.
    """
    return _ask("digest", [url])


def read_object(url: str) -> bytes:
    """Read the current content of a small object.

    Args:
        url: Its URL.

    Raises:
        Absent: It does not exist.
        StorageError: It cannot be read.
    """
    facts = stat(url)
    return read_range(Range(url, 0, facts.size, facts.size, facts.tag))


def _ask(name: str, arguments: Sequence[Any], *, has_answer: bool = True) -> Any:
    """Send a request to the fetching process, and return its answer. One that has died is started again, once."""
    for attempt in range(2):
        try:
            connection = _connected()
            connection.send_bytes(json.dumps([name, arguments]).encode())
            answer = json.loads(connection.recv_bytes()) if has_answer else {"value": None}
            break
        except (OSError, EOFError) as error:
            _forget()
            if attempt:
                raise StorageError(
                    f"the process that reads from object stores has ended ({error!r}). If the memory is full, use "
                    "fewer data loader workers. Start the command again; a training run continues with --resume."
                ) from error
    if "error" in answer:
        raise (Absent if answer.get("is_absent") else StorageError)(answer["error"])
    return answer["value"]


def _connected() -> Connection:
    """Return the connection of this thread."""
    server = _started()
    if getattr(_local, "owner", None) != (os.getpid(), server.address):
        _local.connection = Client(server.address, authkey=server.key)
        _local.owner = (os.getpid(), server.address)
    return _local.connection


def _forget() -> None:
    global _server
    _local.owner = None
    _server = None


def _started() -> _Server:
    """Return the fetching process, started by this process or by the one that it was forked from."""
    global _server
    with _starting:
        if _server is None:
            _server = _start()
        return _server


def _start() -> _Server:
    require_packages("Data in object stores (s3://, gs://, az://, https://)", "obstore", extra="cloud")
    cache, key = Cache(cache_limit()), secrets.token_bytes(32)
    path = os.pathsep.join(entry for entry in sys.path if entry)
    # A session of its own keeps Ctrl-C away from it, because a stopped run still needs images for its last step.
    process = subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(key.hex().encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    answer = json.loads(line) if line else {"error": "The process that reads from object stores cannot be started."}
    if "error" in answer:
        raise ConfigError(answer["error"])
    atexit.register(_stop, process, os.getpid())
    return _Server(process, answer["address"], key, cache, _settings())


def renew() -> None:
    """End the fetching process if credentials or settings in the environment have changed since it was started."""
    if _server is not None and _server.owner == os.getpid() and _server.settings != _settings():
        _stop(_server.process, _server.owner)
        _forget()


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    assert process.stdin is not None
    process.stdin.close()  # asks it to end
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def refuse_credentials(url: str) -> None:
    """Raise an error for a URL with a password or a signature, which would be written into config files and logs.

    Args:
        url: The URL.

    Raises:
        ConfigError: The URL has a user name, a password or a query.
    """
    if is_url(url) and shown(url) != url:
        raise ConfigError(
            f"The URL {shown(url)} was given with a user name, a password, a query or a fragment, which would be "
            "written into the run's config. Leave them out, and give credentials in the environment variables of the "
            "provider."
        )
