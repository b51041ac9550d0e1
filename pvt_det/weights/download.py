"""Download weight files into a cache and verify them."""

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
# File in the cache folder that holds the SHA-256 of each file at its first download.
_RECORDS = "sha256.json"


class Opener(Protocol):
    """The part of `urllib.request.OpenerDirector` that this module uses."""

    def open(self, fullurl: urllib.request.Request, data: None = None, timeout: float = _TIMEOUT) -> Any:
        """Send a request and return the response, following redirects.

        Args:
            fullurl: The request.
            data: Unused; requests have no body.
            timeout: Seconds to wait for the server.
        """


def cache_folder() -> Path:
    """Return the folder that holds downloaded weights: `$PVT_DET_CACHE`, or `~/.cache/pvt_det`."""
    return Path(os.environ.get("PVT_DET_CACHE") or "~/.cache/pvt_det").expanduser()


def fetch(remote: Remote, opener: Opener | None = None) -> Path:
    """Download a remote file into the cache folder, unless it is already there, and verify it.

    The download goes to a temporary file, resumes after an interruption, and is renamed once it is complete. Its
    SHA-256 is compared with the published digits. If none are published, it is recorded on the first download and
    compared from then on. Several processes may fetch the same file at the same time.

    Args:
        remote: The file.
        opener: Sends the requests. The default does not follow redirects from https to plain http.

    Returns:
        Path of the file in the cache folder.

    Raises:
        CheckpointError: If the file cannot be downloaded, or its hash is not the published or recorded one.
    """
    path = cache_folder() / remote.cache_path
    if file_fault(path):
        _refuse_plain_http(remote.url, remote.sha256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _lock():
                # Another process may have downloaded it in the meantime.
                if file_fault(path):
                    _download(remote, path, opener or default_opener(remote))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}).") from error
    _verify(path, remote)
    return path


def _lock() -> FileLock:
    return FileLock(cache_folder() / ".lock")


def _refuse_plain_http(url: str, sha256: str) -> None:
    if not url.startswith("https://") and len(sha256) != 64:
        raise CheckpointError(
            f"{url}: plain http can be tampered with in transit. Use https, or append the file's hash as #sha256=…"
        )


def default_opener(remote: Remote) -> Opener:
    """Build an opener that refuses redirects to plain http unless the file's full hash is known.

    Args:
        remote: The file to download.
    """

    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
            _refuse_plain_http(newurl, remote.sha256)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return urllib.request.build_opener(Redirect)


def _download(remote: Remote, path: Path, opener: Opener) -> None:
    part = path.with_name(path.name + ".part")
    logger.info("Downloading %s to %s", remote.url, path)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue(remote.url, part, opener)
            break
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.is_file():
                part.unlink()
                continue
            answer = f"the server returned {error.code} {error.reason}"
            raise CheckpointError(_manual_download(remote, path, answer)) from error
        # An invalid host name raises UnicodeError.
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, UnicodeError) as error:
            logger.info("Attempt %d of %d failed: %s", attempt, _ATTEMPTS, error)
            if attempt == _ATTEMPTS:
                reason = getattr(error, "reason", error)
                raise CheckpointError(_manual_download(remote, path, str(reason))) from error
    _etag_file(part).unlink(missing_ok=True)
    digest = _sha256(part)
    if not digest.startswith(remote.sha256):
        part.unlink()
        raise CheckpointError(
            f"{remote.url}: the download has SHA-256 {digest}, expected {remote.sha256}{_ellipsis(remote.sha256)}. "
            "It was deleted. Try again, or check the source."
        )
    part.replace(path)


def _continue(url: str, part: Path, opener: Opener) -> None:
    """Download to `part`, resuming at its end if the file on the server is still the same."""
    request = urllib.request.Request(url, headers={"User-Agent": "pvt_det"})
    tag = _etag_file(part).read_text() if part.is_file() and _etag_file(part).is_file() else ""
    start = part.stat().st_size if tag else 0
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag)
    with opener.open(request, timeout=_TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            raise CheckpointError(f"{url}: the server sent a web page, not a file. Check the URL and the network.")
        resumed = response.status == 206
        start = start if resumed else 0
        _etag_file(part).write_text(response.headers.get("ETag", ""))
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file, _progress(part.stem, start, total) as advance:
            while block := response.read(_BLOCK):
                file.write(block)
                advance(len(block))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"connection closed after {part.stat().st_size} of {total} bytes")


def _etag_file(part: Path) -> Path:
    """Return the file that holds the ETag of a partial download, to detect changes on the server."""
    return part.with_name(part.name + ".etag")


@contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes byte counts and advances a progress bar on a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(name, total=total, completed=start)
        yield lambda count: progress.advance(task, count)


def _verify(path: Path, remote: Remote) -> None:
    """Compare a cached file with its published and recorded SHA-256, or record it if it is new."""
    digest = _sha256(path)
    records_file = cache_folder() / _RECORDS
    recorded = _read_records(records_file).get(remote.cache_path, "")
    for expected, origin in ((remote.sha256, "published"), (recorded, f"recorded in {records_file}")):
        if not digest.startswith(expected):
            raise CheckpointError(
                f"{path}: its SHA-256 is {digest}, {origin} is {expected}{_ellipsis(expected)}. The file is damaged or "
                f"has changed. Delete it to download {remote.url} again."
            )
    if recorded:
        return
    try:
        with _lock():
            records = _read_records(records_file) | {remote.cache_path: digest}
            write_atomically(records_file, json.dumps(records, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        logger.warning("%s: cannot be written (%s). The file's hash is not recorded.", records_file, error.strerror)


def _read_records(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid json ({error}). Delete it.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ellipsis(digits: str) -> str:
    return "" if len(digits) in (0, 64) else "…"


def _manual_download(remote: Remote, path: Path, reason: str) -> str:
    return (
        f"{remote.url} cannot be downloaded ({reason}). Without a network, download it on another machine and put it "
        f"at {path}."
    )
