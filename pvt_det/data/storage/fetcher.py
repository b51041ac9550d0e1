"""The process that reads from object stores into the cache, for one process and its data loader workers.

The others ask it for byte ranges and then read them from the cache. It ends with the process that started it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from pvt_det.data.storage.cache import Cache, cache_limit, short_digest
from pvt_det.data.storage.objects import FetchError, Objects
from pvt_det.data.storage.ranges import Facts, Range, retry_seconds
from pvt_det.data.storage.references import base_name, shown
from pvt_det.errors import PvtDetError
from pvt_det.utils.digest import file_digest
from pvt_det.utils.files import open_atomically, write_atomically

logger = logging.getLogger(__name__)

_THREADS = 32
# Bytes of one request for a file that is read as a whole, and such requests at a time.
_PART, _PARTS = 8 * 2**20, 8
_NOW, _LATER = 0, 1
_UNUSED_SECONDS = 30 * 24 * 3600.0
# After a failure, whoever waits for the range gets the error without another series of attempts.
_REMEMBERED_SECONDS = 30.0
_Answer = Any


class Fetcher:
    """Fetches ranges into the cache with several threads, the ones that somebody waits for first.

    Args:
        objects: Reads from object stores.
        cache: The cache.
        threads: Number of requests at a time.
    """

    def __init__(self, objects: Objects, cache: Cache, threads: int = _THREADS) -> None:
        self._objects, self._cache = objects, cache
        self._queue: queue.PriorityQueue[tuple[int, int, Range]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._pending: dict[Range, Future[None]] = {}
        self._waited_for: set[Range] = set()
        self._failed: dict[Range, tuple[float, FetchError]] = {}
        self._lock = threading.Lock()
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True).start()

    def fetch(self, wanted: Range) -> None:
        """Fetch a range and wait for it.

        Args:
            wanted: The range.

        Raises:
            FetchError: It cannot be read.
        """
        with self._lock:
            failed_at, error = self._failed.pop(wanted, (0.0, None))
        if error is not None and time.monotonic() - failed_at < _REMEMBERED_SECONDS:
            raise error
        self._submit(wanted, _NOW).result()

    def fetch_later(self, wanted: Range) -> None:
        """Fetch a range when no thread is needed for one that somebody waits for.

        Args:
            wanted: The range.
        """
        if wanted not in self._failed:
            self._submit(wanted, _LATER)

    def stat(self, url: str) -> Facts:
        """Return the facts of an object. Raises `FetchError` if it cannot be read.

        Args:
            url: Its URL.
        """
        return self._objects.stat(url)

    def list(self, url: str) -> list[tuple[str, Facts]]:
        """Return names and facts of the objects in a folder. Raises `FetchError` if it cannot be listed.

        Args:
            url: Its URL.
        """
        return self._objects.list(url)

    def copy(self, url: str, facts: Facts, sha256: str) -> Path:
        """Copy an object into a file of the cache, unless a copy is there, which is verified.

        Args:
            url: URL of the object.
            facts: Facts that it must have.
            sha256: SHA-256 that it must have, or "".

        Raises:
            FetchError: It cannot be read, or has another SHA-256.
        """
        key = Range(url, 0, facts.size, facts.size, facts.tag).key
        path = self._cache.folder.with_name("files") / key / base_name(url)
        record = path.parent / "sha256"
        if not (path.is_file() and record.is_file() and record.read_text() == file_digest(path)):
            _remove_unused(path.parent.parent)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_atomically(path) as file:
                file.writelines(self._parts(url, facts))
            write_atomically(record, file_digest(path))
        os.utime(record)  # the time of the last use
        if sha256 and record.read_text() != sha256:
            record.unlink()
            raise FetchError(f"{shown(url)} is not the file that its folder of shards describes. Copy it there again.")
        return path

    def digest(self, url: str) -> str:
        """Compute the SHA-256 of an object. Raises `FetchError` if it cannot be read.

        Args:
            url: Its URL.
        """
        sha256 = hashlib.sha256()
        for part in self._parts(url, self._objects.stat(url)):
            sha256.update(part)
        return sha256.hexdigest()

    def _parts(self, url: str, facts: Facts) -> Iterator[bytes]:
        """Yield the content of an object in parts, a few of which are requested at a time."""
        with ThreadPoolExecutor(_PARTS) as pool:
            starts = range(0, facts.size, _PART)
            for some in (starts[first : first + _PARTS] for first in range(0, len(starts), _PARTS)):
                sizes = [min(_PART, facts.size - start) for start in some]
                yield from pool.map(lambda start, size: self._objects.get(url, start, size, facts), some, sizes)

    def _submit(self, wanted: Range, priority: int) -> Future[None]:
        with self._lock:
            future = self._pending.get(wanted)
            is_new = future is None
            if priority == _NOW:
                self._waited_for.add(wanted)
            if future is None:
                future = self._pending[wanted] = Future()
        # A range that waits with a low priority is queued once more. Whoever takes it second finds nothing to do.
        if is_new or priority == _NOW:
            self._queue.put((priority, next(self._numbers), wanted))
        return future

    def _work(self) -> None:
        while True:
            _, _, wanted = self._queue.get()
            with self._lock:
                future = self._pending.get(wanted)
                if future is None or future.running():
                    continue
                future.set_running_or_notify_cancel()
            try:
                self._fetch(wanted)
                error = None
            except FetchError as caught:
                error = caught
            except OSError as caught:
                error = FetchError(
                    f"the cache {self._cache.folder} cannot be written to ({caught.strerror}). Free space on its disk, "
                    "or set the environment variable PVT_DET_CACHE to another folder."
                )
            except BaseException as caught:
                error = FetchError(f"{shown(wanted.url)} cannot be read: {type(caught).__name__}")
                logger.exception("a request failed")
            with self._lock:
                del self._pending[wanted]
                is_waited_for = wanted in self._waited_for
                self._waited_for.discard(wanted)
                if error is not None and not is_waited_for:  # whoever waits gets it below
                    self._failed[wanted] = (time.monotonic(), error)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _fetch(self, wanted: Range) -> None:
        if self._cache.has(wanted.key):
            return
        content = self._objects.get(wanted.url, wanted.start, wanted.size, Facts(wanted.total, wanted.tag))
        if wanted.digest is not None and short_digest(hashlib.sha256(content).digest()) != wanted.digest:
            raise FetchError(
                f"{shown(wanted.url)} differs from its index at byte {wanted.start:,}. Copy the folder of shards there "
                "again, and check the original with pvt-det shard --verify."
            )
        self._cache.write(wanted.key, content)


def _remove_unused(folder: Path) -> None:
    """Remove copies of files that no run has used for a month."""
    for record in folder.glob("*/sha256"):
        with suppress(OSError):
            if time.time() - record.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(record.parent)


def _answer(fetcher: Fetcher, name: str, arguments: list[Any]) -> _Answer:
    match name:
        case "fetch":
            return fetcher.fetch(Range(*arguments))
        case "later":
            for each in arguments:
                fetcher.fetch_later(Range(*each))
            return None
        case "stat":
            facts = fetcher.stat(*arguments)
            return [facts.size, facts.tag]
        case "list":
            return [[name, facts.size, facts.tag] for name, facts in fetcher.list(*arguments)]
        case "digest":
            return fetcher.digest(*arguments)
        case "copy":
            url, size, tag, sha256 = arguments
            return str(fetcher.copy(url, Facts(size, tag), sha256))
    raise AssertionError(name)


def _serve(connection: Connection, fetcher: Fetcher) -> None:
    """Answer the requests of one process until it ends."""
    while True:
        try:
            name, arguments = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer: dict[str, Any] = {"value": _answer(fetcher, name, arguments)}
        except FetchError as error:
            answer = {"error": str(error), "is_absent": error.is_absent}
        except OSError as error:
            answer = {"error": f"the cache cannot be written to: {error.filename} ({error.strerror})"}
        except BaseException as error:  # those of Rust are no `Exception`; whoever asked would wait forever
            logger.exception("a request failed")
            answer = {"error": f"Reading from the object store failed: {type(error).__name__}. See the log."}
        try:
            if name != "later":
                connection.send_bytes(json.dumps(answer).encode())
        except OSError:
            return


def _accept(listener: Listener, serve: Callable[[Connection], None]) -> None:
    while True:
        try:
            connection = listener.accept()
        except Exception:  # a process that ended at once, or does not know the key
            continue
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def main() -> None:
    """Print the address, answer requests, and end when the standard input is closed."""
    key = bytes.fromhex(sys.stdin.readline().strip())
    try:
        fetcher = Fetcher(Objects(retry_seconds()), Cache(cache_limit()))
    except PvtDetError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        # Windows has pipes with names instead of sockets in folders.
        listener = Listener(None if os.name == "nt" else f"{folder}/socket", authkey=key, backlog=128)
        threading.Thread(target=_accept, args=(listener, lambda c: _serve(c, fetcher)), daemon=True).start()
        print(json.dumps({"address": listener.address}), flush=True)
        sys.stdin.read()
        listener.close()
    os._exit(0)  # without waiting for requests


if __name__ == "__main__":
    main()
