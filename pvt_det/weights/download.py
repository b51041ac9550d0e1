"""Fetch a file of weights once, whole, and unchanged."""

from __future__ import annotations

import hashlib
import http
import http.client
import json
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pvt_det.errors import CheckpointError
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import file_fault
from pvt_det.weights.catalog import Remote

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_TIMEOUT = 30.0
_BLOCK = 1 << 20
# SHA-256 of every file at its first download, in the cache folder.
_RECORDS = "sha256.json"


class Opener(Protocol):
    """What this module needs of `urllib.request.OpenerDirector`."""

    def open(self, fullurl: urllib.request.Request, data: None = None, timeout: float = _TIMEOUT) -> Any:
        """Send a request and return the response, following redirects."""


def cache_folder() -> Path:
    """Folder that fetched weights are kept in: `$PVT_DET_CACHE`, or `~/.cache/pvt_det`."""
    return Path(os.environ.get("PVT_DET_CACHE") or "~/.cache/pvt_det").expanduser()


def fetch(remote: Remote, opener: Opener | None = None) -> Path:
    """Bring a remote file into the cache folder, unless it is there, and check it.

    What arrives goes to a temporary name, is taken up again where it was cut off, and gets its own name only when it
    is whole. Its SHA-256 is compared with the published digits; where there are none it is recorded, and compared from
    then on. Several processes may ask for the same file at once.

    Args:
        remote: The file.
        opener: Sends the requests; by default urllib's, which does not follow a redirect away from https.

    Returns:
        Path of the file in the cache folder.

    Raises:
        CheckpointError: If the file cannot be fetched or is not the one published or recorded.
    """
    path = cache_folder() / remote.place
    if file_fault(path):
        _refuse_plain_http(remote.url, remote.sha256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _lock():
                # Another process may have fetched it meanwhile.
                if file_fault(path):
                    _download(remote, path, opener or default_opener(remote))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    _verify(path, remote)
    return path


def _lock() -> FileLock:
    return FileLock(cache_folder() / ".lock")


def _refuse_plain_http(url: str, sha256: str) -> None:
    if not url.startswith("https://") and len(sha256) != 64:
        raise CheckpointError(
            f"{url}: plain http can be tampered with on its way; use https, or add the file's hash as #sha256=…"
        )


def default_opener(remote: Remote) -> Opener:
    """Build an opener that does not follow a redirect from https to plain http, unless the file's hash is known.

    Args:
        remote: The file to fetch.
    """

    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
            _refuse_plain_http(newurl, remote.sha256)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return urllib.request.build_opener(Redirect)


def _download(remote: Remote, path: Path, opener: Opener) -> None:
    part = path.with_name(path.name + ".part")
    logger.info("fetching %s to %s", remote.url, path)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue(remote.url, part, opener)
            break
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.is_file():
                part.unlink()
                continue
            raise CheckpointError(_by_hand(remote, path, f"the server answers {error.code} {error.reason}")) from error
        # UnicodeError: a host's name that is none.
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, UnicodeError) as error:
            logger.info("attempt %d of %d failed: %s", attempt, _ATTEMPTS, error)
            if attempt == _ATTEMPTS:
                reason = getattr(error, "reason", error)
                raise CheckpointError(_by_hand(remote, path, str(reason))) from error
    _tag(part).unlink(missing_ok=True)
    digest = _sha256(part)
    if not digest.startswith(remote.sha256):
        part.unlink()
        raise CheckpointError(
            f"{remote.url}: what arrived has SHA-256 {digest}, expected {remote.sha256}{_more(remote.sha256)}; "
            "it was deleted. Try again, or check the source"
        )
    part.replace(path)


def _continue(url: str, part: Path, opener: Opener) -> None:
    """Fetch to `part`, from where it ends if the server still has the same file."""
    request = urllib.request.Request(url, headers={"User-Agent": "pvt_det"})
    tag = _tag(part).read_text() if part.is_file() and _tag(part).is_file() else ""
    start = part.stat().st_size if tag else 0
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag)
    with opener.open(request, timeout=_TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            raise CheckpointError(f"{url}: the server sent a web page, not a file; check the address or the network")
        resumed = response.status == 206
        start = start if resumed else 0
        _tag(part).write_text(response.headers.get("ETag", ""))
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file, _progress(part.stem, start, total) as advance:
            while block := response.read(_BLOCK):
                file.write(block)
                advance(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"cut off after {part.stat().st_size} of {total} bytes")


def _tag(part: Path) -> Path:
    """File beside an unfinished download with the ETag that tells whether the server still has the same file."""
    return part.with_name(part.name + ".etag")


@contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Give a function to report bytes to, which moves a bar on a terminal and does nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(name, total=total, completed=start)
        yield lambda count: progress.advance(task, count)


def _verify(path: Path, remote: Remote) -> None:
    """Compare a file in the cache with its published and recorded SHA-256; record it where there is no record."""
    digest = _sha256(path)
    records_file = cache_folder() / _RECORDS
    recorded = _read_records(records_file).get(remote.place, "")
    for expected, whose in ((remote.sha256, "published"), (recorded, f"recorded in {records_file}")):
        if not digest.startswith(expected):
            raise CheckpointError(
                f"{path}: its SHA-256 is {digest}, {whose} is {expected}{_more(expected)}: damaged or not the same "
                f"file; delete it to fetch {remote.url} again"
            )
    if recorded:
        return
    try:
        with _lock():
            records = _read_records(records_file) | {remote.place: digest}
            write_atomically(records_file, json.dumps(records, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        logger.warning("%s: cannot be written (%s); the file's hash is not recorded", records_file, error.strerror)


def _read_records(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as json ({error}); delete it") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _more(digits: str) -> str:
    return "" if len(digits) in (0, 64) else "…"


def _by_hand(remote: Remote, path: Path, reason: str) -> str:
    return (
        f"{remote.url} cannot be fetched ({reason}). Without a network here, fetch that file on another machine and "
        f"put it at {path}"
    )
