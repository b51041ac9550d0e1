"""Inputs from the network: what a URL refers to, and images over HTTP with limits of size and time."""

from __future__ import annotations

import base64
import http.client
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from pvt_det.data.images import IMAGE_SUFFIXES, decode_image
from pvt_det.errors import DataError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# Seconds for all of an image, from finding the server to the last byte.
TIME_LIMIT = 30.0
SIZE_LIMIT = 64 << 20  # bytes of an image file

_STREAM_SCHEMES, _HTTP_SCHEMES = ("rtsp",), ("http", "https")
_STEP_TIMEOUT = 10.0  # seconds for each connection and each block
_BLOCK = 1 << 16
_PLAYLISTS = ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl", "audio/x-mpegurl")
_UNKNOWN = ("application/octet-stream", "binary/octet-stream")
_FAILURES = (OSError, http.client.HTTPException, ValueError)
Result = TypeVar("Result")


class Kind(Enum):
    """What an input is: one image, a video with an end, or a live stream."""

    IMAGE, VIDEO, LIVE = "image", "video", "live stream"


def is_url(text: str) -> bool:
    """Return whether a string starts like a URL, such as "http://".

    Args:
        text: Any string.
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def without_login(url: str) -> str:
    """Return a URL without user name and password, for messages and results.

    Args:
        url: A URL such as "rtsp://user:password@camera/1".
    """
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def output_name(url: str) -> str:
    """Return a file name for the results of a URL: its last part without suffix, or else the host.

    Args:
        url: The URL.
    """
    parts = urlsplit(url)
    words = (PurePosixPath(unquote(parts.path)).stem, parts.hostname or "")
    names = (re.sub(r"[^\w.-]+", "_", word).strip("._") for word in words)
    return next(filter(None, names), "stream")


def find_kind(url: str) -> Kind:
    """Find out whether a URL is that of an image, a video or a live stream.

    The suffix of an image decides without asking the server. Otherwise the type that the server states decides.

    Args:
        url: A URL with the scheme http, https or rtsp.

    Raises:
        DataError: The scheme is a different one, the server does not answer in time, or it sends something else.
    """
    shown, scheme = _checked(url)
    if scheme in _STREAM_SCHEMES:
        return Kind.LIVE
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return Kind.IMAGE
    given = _within(TIME_LIMIT, shown, lambda: _content_type(url))
    if given == "multipart/x-mixed-replace":
        return Kind.LIVE
    if given.startswith("image/"):
        return Kind.IMAGE
    if given.startswith("video/") or given in _PLAYLISTS or (given in _UNKNOWN and suffix in VIDEO_SUFFIXES):
        return Kind.VIDEO
    raise DataError(f"{shown} is of type {given}. Expected an image, a video or a stream. Check the URL in a browser.")


def read_image_url(url: str) -> NDArray[np.uint8]:
    """Read an image over HTTP, upright according to its EXIF orientation.

    Args:
        url: A URL with the scheme http or https.

    Returns:
        The image, `H×W×3` uint8 RGB.

    Raises:
        DataError: The server does not send the whole image in 30 seconds, sends more than 64 MiB, or what it sends is
            not an image.
    """
    shown, _ = _checked(url)
    return decode_image(_within(TIME_LIMIT, shown, lambda: _content(url, shown)), shown)


def _checked(url: str) -> tuple[str, str]:
    """Return a URL without login, and its scheme."""
    try:
        parts, shown = urlsplit(url), without_login(url)
        is_valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is not a number, or a broken IPv6 address
        raise DataError(f"{url} is not a valid URL. Expected one such as http://host/photo.jpg.") from None
    if parts.scheme not in _HTTP_SCHEMES + _STREAM_SCHEMES:
        raise DataError(
            f"{shown}: URLs with {parts.scheme}:// are not supported. Expected http://, https:// or rtsp://, or the "
            "path of a file."
        )
    if not is_valid:
        raise DataError(f"{shown} is not a valid URL. Expected one such as http://host/photo.jpg.")
    return shown, parts.scheme


def _within(seconds: float, shown: str, work: Callable[[], Result]) -> Result:
    """Run network code, which may not take longer in all.

    It runs in a thread, because a server that sends a byte now and then can delay each step without a limit.
    """
    answers: queue.SimpleQueue[tuple[Result | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise DataError(f"{shown} did not arrive within {seconds:g} seconds. Check the URL and the network.") from None
    if isinstance(error, urllib.error.HTTPError):
        # The server's own reason may contain anything.
        phrase = http.client.responses.get(error.code, "")
        raise DataError(f"{shown}: the server returned {error.code} {phrase}.".replace(" .", ".")) from error
    if isinstance(error, _FAILURES) and not isinstance(error, DataError):
        reason = re.sub(r"[^ -~]+", " ", str(getattr(error, "reason", error)) or type(error).__name__)[:200]
        raise DataError(f"{shown} cannot be read ({reason}). Check the URL and the network.") from error
    if error is not None:
        raise error
    assert result is not None
    return result


def _content_type(url: str) -> str:
    with _open(url) as response:
        return response.headers.get_content_type()


def _content(url: str, shown: str) -> bytes:
    end = time.monotonic() + TIME_LIMIT
    with _open(url) as response:
        given = response.headers.get_content_type()
        if not given.startswith("image/") and given not in _UNKNOWN:
            raise DataError(f"{shown} is of type {given}. Expected an image. Check the URL in a browser.")
        content = bytearray()
        while block := response.read1(_BLOCK):
            content += block
            if len(content) > SIZE_LIMIT:
                raise DataError(f"{shown} is larger than {SIZE_LIMIT >> 20} MiB. Download it and pass the file.")
            if time.monotonic() > end:
                raise TimeoutError("too slow")
    stated = response.headers.get("Content-Length", "")
    if stated.isascii() and stated.isdigit() and len(content) < int(stated):
        raise ConnectionError(f"connection closed after {len(content)} of {stated} bytes")
    return bytes(content)


def _open(url: str) -> Any:
    """Send a request. Redirects are followed, to http and https only."""
    parts = urlsplit(url)
    request = urllib.request.Request(without_login(url), headers={"User-Agent": "pvt_det", "Accept": "*/*"})
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # Not sent to the server that a redirect names.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener.open(request, timeout=_STEP_TIMEOUT)
