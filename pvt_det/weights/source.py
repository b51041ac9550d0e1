"""Resolve a weight source, such as a path, catalog name or URL, to a local file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

from pvt_det.errors import CheckpointError
from pvt_det.utils.paths import ABSENT, file_fault
from pvt_det.utils.text import did_you_mean
from pvt_det.weights.catalog import CATALOG, CLASSIFIERS, Remote, detectron2_file, hub_file
from pvt_det.weights.download import fetch

_RESNETS = ("resnet18", "resnet50", "resnet101")


def locate(source: str | Path, fetch: Callable[[Remote], Path] = fetch) -> Path:
    """Return the local path of a weight source, downloading the file if it is not cached.

    Args:
        source: One of the following: a path; a catalog name, as `pvt://pvt_small` or `pvt_small`; `https://…`,
            optionally followed by `#sha256=…` to verify the file; `http://…#sha256=…`, where the hash is required;
            `hf://owner/repository` or `hf://owner/repository/file`; `torchvision://resnet50`;
            `detectron2://ImageNetPretrained/MSRA/R-50.pkl`.
        fetch: Function that downloads a remote file and returns its local path.

    Returns:
        Path of the file.

    Raises:
        CheckpointError: If the file, name or scheme does not exist, or the file cannot be downloaded.
    """
    text = str(source)
    path = Path(source).expanduser()
    scheme, separator, rest = text.partition("://")
    if isinstance(source, Path) or not separator:
        fault = file_fault(path)
        if not fault:
            return path
        if text in CATALOG:
            return fetch(CATALOG[text])
        if fault != ABSENT:
            raise CheckpointError(f"{path} {fault}. Expected a weight file.")
        raise CheckpointError(_unknown(text, "not an existing file or a name in the catalog"))
    if scheme not in _SCHEMES:
        known = ", ".join(f"{s}://" for s in _SCHEMES)
        raise CheckpointError(f"{text}: unknown scheme {scheme!r}. Expected one of {known}.")
    return fetch(_SCHEMES[scheme](text, rest))


def _catalog(text: str, name: str) -> Remote:
    if name not in CATALOG:
        raise CheckpointError(_unknown(name, "not a name in the catalog"))
    return CATALOG[name]


def _torchvision(text: str, name: str) -> Remote:
    if name not in _RESNETS:
        raise CheckpointError(f"{text}: expected one of {', '.join(f'torchvision://{n}' for n in _RESNETS)}.")
    return CATALOG[name]


def _hub(text: str, rest: str) -> Remote:
    owner_and_name, file = "/".join(rest.split("/")[:2]), "/".join(rest.split("/")[2:])
    if "/" not in owner_and_name or not _is_plain(rest):
        raise CheckpointError(f"{text}: expected hf://owner/repository or hf://owner/repository/file.")
    return hub_file(owner_and_name, file) if file else hub_file(owner_and_name)


def _detectron2(text: str, rest: str) -> Remote:
    if not _is_plain(rest):
        raise CheckpointError(f"{text}: expected a path such as detectron2://ImageNetPretrained/MSRA/R-50.pkl.")
    return detectron2_file(rest)


def _url(text: str, rest: str) -> Remote:
    url, fragment = urldefrag(text)
    digest = ""
    if fragment:
        if not (found := re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)):
            raise CheckpointError(f"{text}: expected sha256= and 64 hex digits after '#'.")
        digest = found[1].lower()
    name = Path(urlsplit(url).path).name
    if not name or not _is_plain(name):
        raise CheckpointError(f"{text}: the URL does not end in a file name.")
    # Many URLs end in the same file name, such as model.safetensors.
    return Remote(url, f"urls/{hashlib.sha256(url.encode()).hexdigest()[:8]}/{name}", digest)


_SCHEMES: dict[str, Callable[[str, str], Remote]] = {
    "pvt": _catalog,
    "https": _url,
    "http": _url,
    "hf": _hub,
    "torchvision": _torchvision,
    "detectron2": _detectron2,
}


def _is_plain(path: str) -> bool:
    return all(re.fullmatch(r"(?!\.+$)[\w.+=@-]+", part) for part in path.split("/"))


def _unknown(name: str, problem: str) -> str:
    hint = did_you_mean(name, CATALOG)
    names = ", ".join(CLASSIFIERS)
    return f"{name}: {problem}.{hint} Expected one of {names} or another name in pvt_det/weights/catalog.py."
