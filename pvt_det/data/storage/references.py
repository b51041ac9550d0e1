"""Names of folders and files: paths of this machine, and URLs of object stores and web servers."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

# s3: Amazon S3 and compatible stores, gs: Google Cloud Storage, az: Azure Blob Storage.
SCHEMES = ("s3", "gs", "az", "https", "http")
_URL = re.compile(rf"({'|'.join(SCHEMES)})://", re.IGNORECASE)
Reference = str | os.PathLike[str]


def is_url(reference: Reference) -> bool:
    """Return whether a reference is a URL with one of `SCHEMES`.

    Args:
        reference: A path or URL.
    """
    return isinstance(reference, str) and _URL.match(reference) is not None


def join(root: Reference, name: str) -> str:
    """Return the reference of a file in a folder.

    Args:
        root: The folder, a path or URL.
        name: Name of the file relative to the folder, with "/" between folders.
    """
    if is_url(root):
        return f"{str(root).rstrip('/')}/{name}"
    return str(Path(root) / name)


def base_name(reference: Reference) -> str:
    """Return the last part of a path or URL.

    Args:
        reference: A path or URL.
    """
    return shown(str(reference)).rstrip("/").rpartition("/")[2] if is_url(reference) else Path(reference).name


def shown(reference: Reference) -> str:
    """Return a reference for messages: a URL without user name, password, query and fragment.

    Args:
        reference: A path or URL.
    """
    if not is_url(reference):
        return str(reference)
    parts = urlsplit(str(reference))
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def split(url: str) -> tuple[str, str]:
    """Split a URL into the bucket or server, and the path in it.

    Args:
        url: The URL.
    """
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme.lower()}://{host}", path.strip("/")
