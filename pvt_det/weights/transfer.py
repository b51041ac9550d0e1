"""Transfer one file over HTTP: resumed only if it is still the same file, complete, and within a deadline."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pvt_det.utils.files import write_atomically
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)

# Maximum time of a transfer with all its attempts, in seconds. What arrived by then is kept for the next one.
DEADLINE = 3600.0
_ATTEMPTS = 3
_TIMEOUT = 30.0
_BLOCK = 1 << 20
# Network failures, replies that are not HTTP, and headers that urllib cannot handle.
_FAILURES = (OSError, http.client.HTTPException, ValueError)


class Opener(Protocol):
    """The part of `urllib.request.OpenerDirector` that this module uses."""

    def open(self, fullurl: urllib.request.Request, data: None = None, timeout: float = _TIMEOUT) -> Any:
        """Send a request and return the response, following redirects.

        Args:
            fullurl: The request.
            data: Unused; requests have no body.
            timeout: Seconds to wait for the server.
        """


class TransferError(Exception):
    """A transfer failed for good. The text is a reason that fits in parentheses."""


class _BrokenError(Exception):
    """An attempt failed. The next one may succeed."""


class _ChangedError(Exception):
    """The transfer cannot be resumed and must start again."""


@dataclass(frozen=True)
class _Version:
    """What identifies a version of a file on a server. Headers that are missing or odd are "".

    Attributes:
        url: URL of the file.
        etag: The header ETag.
        modified: The header Last-Modified.
        length: Size of the whole file in bytes, or None if unknown.
    """

    url: str
    etag: str
    modified: str
    length: int | None

    @property
    def condition(self) -> str:
        """Value of the header If-Range, which must be a strong ETag or a date; "" if there is none."""
        return self.etag if self.etag.startswith('"') else self.modified


def transfer(url: str, part: Path, opener: Opener, *, has_hash: bool) -> None:
    """Transfer a file, resuming at the end of a partial one if the file on the server has not changed.

    A file `<part>.json` records the version on the server until the transfer is complete.

    Args:
        url: URL of the file.
        part: Path of the partial file. It holds the whole file on return.
        opener: Sends the requests.
        has_hash: Whether the caller can check the file's hash. Otherwise, the server must state the size.

    Raises:
        OSError: The file cannot be written.
        TransferError: The file cannot be transferred.
    """
    end = time.monotonic() + DEADLINE
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _attempt(url, part, opener, has_hash, end)
            break
        except _BrokenError as error:
            logger.info("Attempt %d of %d failed: %s", attempt, _ATTEMPTS, error)
            if attempt == _ATTEMPTS:
                raise TransferError(str(error)) from error
    _version_file(part).unlink(missing_ok=True)


def _attempt(url: str, part: Path, opener: Opener, has_hash: bool, end: float) -> None:
    saved = _read_version(part)
    if saved is not None and saved.url == url and saved.condition and part.stat().st_size:
        try:
            _receive(_Version(url, saved.etag, saved.modified, saved.length), part, opener, has_hash, end)
            return
        except _ChangedError as error:
            logger.info("%s: %s. The download starts again.", url, error)
    part.unlink(missing_ok=True)
    _receive(_Version(url, "", "", None), part, opener, has_hash, end)


def _receive(saved: _Version, part: Path, opener: Opener, has_hash: bool, end: float) -> None:
    """Send one request, from the end of the partial file if there is one, and write the response."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(saved.url, headers={"User-Agent": "pvt_det", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", saved.condition)
    with _open(opener, request, resuming=start > 0, end=end) as response:
        version = _check(response, saved, start)
        start = start if response.status == HTTPStatus.PARTIAL_CONTENT else 0
        if version.length is None and not has_hash:
            raise TransferError(
                "the server does not state the size of the file, so a part of it could pass for the whole; append its "
                "hash as #sha256=…"
            )
        if not start:
            # The old part must not be taken for a part of this version.
            part.unlink(missing_ok=True)
            write_atomically(_version_file(part), json.dumps(asdict(version)))
        with part.open("ab") as file, _progress(part.stem, start, version.length) as advance:
            while block := _read(response, end):
                file.write(block)
                advance(len(block))
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if version.length is not None and size != version.length:
        if size > version.length:
            part.unlink()
        raise _BrokenError(f"connection closed after {size} of {version.length} bytes")


def _open(opener: Opener, request: urllib.request.Request, *, resuming: bool, end: float) -> Any:
    _check_deadline(end)
    try:
        return opener.open(request, timeout=min(_TIMEOUT, max(1.0, end - time.monotonic())))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and resuming:
            raise _ChangedError("the server has no such part of the file") from error
        # The server's own reason may contain anything.
        phrase = http.client.responses.get(error.code, "")
        raise TransferError(f"the server returned {error.code} {phrase}".strip()) from error
    except _FAILURES as error:
        raise _BrokenError(_one_line(getattr(error, "reason", error))) from error


def _check(response: Any, saved: _Version, start: int) -> _Version:
    """Check a response's headers, and return the version that it belongs to."""
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise TransferError("the server sent a web page, not a file; check the URL and the network")
    if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise TransferError(f"the server returned {response.status} instead of a file")
    if (encoding := headers.get("Content-Encoding", "identity").strip().lower()) != "identity":
        raise TransferError(f"the server sent the file in the encoding {encoding[:40]!r}, which was not requested")
    etag, modified = (_plain(headers.get(name)) for name in ("ETag", "Last-Modified"))
    if response.status == HTTPStatus.OK:
        length = re.fullmatch(r"\d{1,18}", headers.get("Content-Length", "").strip())
        return _Version(saved.url, etag, modified, int(length[0]) if length else None)
    if not start:
        raise TransferError("the server sent a part of the file, which was not requested")
    # A response to If-Range may leave out the header that was not the condition.
    differs = any(new not in ("", old) for new, old in ((etag, saved.etag), (modified, saved.modified)))
    if differs or saved.condition not in (etag, modified):
        raise _ChangedError("the file on the server has changed")
    span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", headers.get("Content-Range", "").strip())
    if span is None or int(span[1]) != start or (saved.length is not None and int(span[2]) != saved.length):
        raise _ChangedError("the server sent a different part of the file than requested")
    return _Version(saved.url, etag, modified, int(span[2]))


def _plain(header: str | None) -> str:
    """Return a header if it can be sent back to the server unchanged, and "" otherwise."""
    return header if header and re.fullmatch(r"[\x20-\x7e]{1,200}", header) else ""


def _read(response: Any, end: float) -> bytes:
    _check_deadline(end)
    try:
        # Unlike `read`, it returns what has arrived, so that a slow server cannot delay the check of the deadline.
        return response.read1(_BLOCK)
    except _FAILURES as error:
        raise _BrokenError(_one_line(error)) from error


def _check_deadline(end: float) -> None:
    if time.monotonic() > end:
        limit = counted(round(DEADLINE / 60), "minute")
        raise TransferError(f"it took longer than {limit}; run the same command again to continue where it stopped")


def _one_line(error: object) -> str:
    """Return an error's text without line breaks and control characters, which a server may have sent."""
    return re.sub(r"[^ -~]+", " ", str(error) or type(error).__name__)[:200]


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_version(part: Path) -> _Version | None:
    """Return the version that a partial file belongs to, or None if there is none or it is unknown."""
    try:
        version = _Version(**json.loads(_version_file(part).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    known = all(isinstance(text, str) for text in (version.url, version.etag, version.modified))
    return version if known and isinstance(version.length, int | None) and part.is_file() else None


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
