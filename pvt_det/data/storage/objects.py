"""Requests to object stores and web servers, repeated when they fail in a way that may pass.

Only the process of `pvt_det.data.storage.fetcher` may use this module: obstore runs threads, which a forked process
does not have, so that a data loader worker would wait for them forever.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from pvt_det.data.storage.ranges import Facts, endpoint
from pvt_det.data.storage.references import shown, split
from pvt_det.utils.text import counted

# Seconds for one attempt.
_TIMEOUT, _CONNECT_TIMEOUT = 30.0, 10.0
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 15.0
# Codes of S3 and others for credentials that are not valid any more, which come with status 400.
_EXPIRED = re.compile(r"<Code>(ExpiredToken|TokenRefreshRequired|InvalidToken|ExpiredTokenException)</Code>")
_STATUS, _CODE = re.compile(r"status code: (\d{3})"), re.compile(r"<Code>(\w{1,60})</Code>")
_SECRET = re.compile(r"KEY|SECRET|TOKEN|SAS|PASSWORD|CREDENTIAL", re.IGNORECASE)
_PASSING = (408, 425, 429)
_KINDS = {
    "kind: Timeout": "the server did not answer in time",
    "kind: Connect": "no connection to the server",
    "kind: Interrupted": "the answer was cut short",
    "NotPartial": "the server does not send parts of files",
}
_Result = TypeVar("_Result")


class FetchError(Exception):
    """A request failed for good.

    Args:
        text: What is wrong and what to do, for the user.
        is_absent: Whether the object does not exist.
    """

    def __init__(self, text: str, *, is_absent: bool = False) -> None:
        super().__init__(text)
        self.is_absent = is_absent


class _Passing(Exception):
    """An attempt failed in a way that may pass."""


class Objects:
    """Reads objects.

    Args:
        retry_seconds: Time in seconds after which a failing request is not repeated any more.
        timeout: Time in seconds for one attempt.
    """

    def __init__(self, retry_seconds: float, timeout: float = _TIMEOUT) -> None:
        import obstore

        self._obstore = obstore
        self._retry_seconds, self._timeout = retry_seconds, timeout
        self._store = cache(self._open)

    def stat(self, url: str) -> Facts:
        """Return the facts of an object.

        Args:
            url: Its URL.

        Raises:
            FetchError: The object does not exist or cannot be read.
        """
        base, path = split(url)

        def read() -> Facts:
            # Not HEAD, because its answer does not say why access is denied.
            try:
                return _facts(self._obstore.get(self._store(base), path, options={"range": (0, 1)}).meta)
            except Exception as error:
                if "status code: 416" not in str(error):
                    raise
                return _facts(self._obstore.head(self._store(base), path))  # the object is empty

        return self._repeat(url, read)

    def list(self, url: str) -> list[tuple[str, Facts]]:
        """Return names, relative to the folder, and facts of all objects in a folder and its subfolders.

        Args:
            url: URL of the folder.

        Raises:
            FetchError: The folder cannot be listed.
        """
        base, path = split(url)
        start = len(path) + 1 if path else 0

        def read() -> list[tuple[str, Facts]]:
            pages = self._obstore.list(self._store(base), path or None)
            return [(each["path"][start:], _facts(each)) for page in pages for each in page]

        return sorted(self._repeat(url, read))

    def get(self, url: str, start: int, size: int, facts: Facts) -> bytes:
        """Read a part of an object.

        Args:
            url: URL of the object.
            start: Position of the first byte.
            size: Number of bytes.
            facts: Facts that the object must have.

        Raises:
            FetchError: The object has changed or cannot be read.
        """
        if size == 0:
            return b""
        base, path = split(url)

        def read() -> bytes:
            result = self._obstore.get(self._store(base), path, options={"range": (start, start + size)})
            if (found := _facts(result.meta)) != facts:
                raise FetchError(
                    f"{shown(url)} has changed on the server: it had {facts.size:,} bytes and the tag {facts.tag}, and "
                    f"has {found.size:,} bytes and the tag {found.tag} now. Data must not change during a run. Restore "
                    "it, or start a new run."
                )
            content = bytes(result.bytes())
            if len(content) != size:
                raise _Passing(f"the answer was cut short, {len(content):,} of {size:,} bytes")
            return content

        return self._repeat(url, read)

    def _open(self, base: str) -> Any:
        from obstore.store import from_url

        options = {
            "timeout": timedelta(seconds=self._timeout),
            "connect_timeout": timedelta(seconds=min(self._timeout, _CONNECT_TIMEOUT)),
            "allow_http": base.startswith("http://") or endpoint().startswith("http://"),
        }
        try:
            # Requests are repeated here, because obstore does not repeat answers that are cut short.
            return from_url(base, retry_config={"max_retries": 0}, client_options=options)
        except Exception as error:  # those of obstore have no common base
            raise FetchError(
                f"{shown(base)} cannot be opened: {_without_secrets(str(error).partition(chr(10))[0])}. Check the URL "
                "and the provider's environment variables, which docs/storage.md lists."
            ) from None

    def _repeat(self, url: str, attempt: Callable[[], _Result]) -> _Result:
        """Call a function until it succeeds, with longer and longer pauses between the attempts."""
        started, count = time.monotonic(), 0
        while True:
            count += 1
            try:
                return attempt()
            except _Passing as error:
                problem = str(error)
            except FetchError:
                raise
            except Exception as error:  # those of obstore have no common base
                problem = _passing_problem(url, error)
            # The jitter keeps many processes from repeating their requests at the same time.
            delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (count - 1)) * random.uniform(0.5, 1.5)
            passed = time.monotonic() - started
            if passed + delay > self._retry_seconds:
                raise FetchError(
                    f"{shown(url)} cannot be read: {problem} ({counted(count, 'attempt')} in {passed:.0f} s). Check "
                    "the network and the server, and start the command again; a training run continues with --resume."
                )
            time.sleep(delay)


def _without_secrets(text: str) -> str:
    """Remove the values of environment variables that hold secrets from a message."""
    secrets = [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) > 3]
    for value in secrets:
        text = text.replace(value, "…")
    return text


def _facts(meta: Any) -> Facts:
    modified = meta["last_modified"]
    return Facts(meta["size"], meta["e_tag"] or (modified.isoformat() if modified.timestamp() else ""))


def _passing_problem(url: str, error: Exception) -> str:
    """Say what is wrong in a few words, or raise the final error if trying again is useless.

    The message of obstore is not shown, because what a server answers may contain access keys.
    """
    from obstore import exceptions

    denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    hopeless = (exceptions.InvalidPathError, exceptions.NotSupportedError, exceptions.UnknownConfigurationKeyError)
    text, name = str(error), shown(url)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    code = f", {found[1]}" if (found := _CODE.search(text)) else ""
    if isinstance(error, FileNotFoundError):
        raise FetchError(f"{name} does not exist. Check the URL.", is_absent=True) from None
    if "169.254.169.254" in text or "metadata" in text.partition("\n")[0]:
        raise FetchError(
            f"{name} cannot be read, because no credentials were found. Set those of the provider in the environment, "
            "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket."
        ) from None
    if isinstance(error, denied) or _EXPIRED.search(text):
        raise FetchError(
            f"{name} cannot be read: access was denied (status {status}{code}). The credentials have expired, or do "
            "not allow reading it. Renew them, and start the command again; a training run continues with --resume."
        ) from None
    if isinstance(error, hopeless) or (400 <= status < 500 and status not in _PASSING):
        reason = next((words for mark, words in _KINDS.items() if mark in text), f"status {status}{code}")
        if "RangeNotSupported" in text:
            reason = "the server does not send parts of files, as any object store does"
        raise FetchError(f"{name} cannot be read: {reason}. Check the URL and the settings of the provider.") from None
    if status:
        return f"the server answered with status {status}{code}"
    return next((words for mark, words in _KINDS.items() if mark in text), type(error).__name__)
