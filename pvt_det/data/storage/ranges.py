"""Requests to object stores: which part of which object, and how long a failing one is repeated."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass

from pvt_det.errors import ConfigError

RETRY_VARIABLE, _RETRY_SECONDS = "PVT_DET_RETRY_SECONDS", 60.0


@dataclass(frozen=True)
class Facts:
    """What identifies the state of an object.

    Attributes:
        size: Size in bytes.
        tag: Its ETag or, without one, the time of its last change.
    """

    size: int
    tag: str


@dataclass(frozen=True)
class Range:
    """A part of an object.

    Attributes:
        url: URL of the object.
        start: Position of the first byte.
        size: Number of bytes.
        total: Size that the object must have, in bytes.
        tag: Tag that the object must have.
        digest: First 8 bytes of the SHA-256 of the part, as a number, or None if it is not known.
    """

    url: str
    start: int
    size: int
    total: int
    tag: str
    digest: int | None = None

    @property
    def key(self) -> str:
        """Key of its entry in the cache."""
        identity = [endpoint(), self.url, self.start, self.size, self.total, self.tag]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:40]


def endpoint() -> str:
    """Return the server that takes requests for S3 instead of Amazon's; "" without one."""
    return os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""


def retry_seconds() -> float:
    """Return for how many seconds a failing request is repeated, from the environment variable PVT_DET_RETRY_SECONDS.

    Raises:
        ConfigError: Its value is not a number of at least 0.
    """
    text = os.environ.get(RETRY_VARIABLE, str(_RETRY_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"the environment variable {RETRY_VARIABLE} is {text!r}. Expected seconds, at least 0.")
    return seconds
