"""From what a user writes to a file on this machine."""

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
    """Turn a source into a path, fetching the file where it is not here yet.

    Args:
        source: One of: a path; a name of the catalog, `pvt://pvt_small` or just `pvt_small`; `https://…`, with
            `#sha256=…` at its end to have that checked; `hf://owner/repository` or `hf://owner/repository/file`;
            `torchvision://resnet50`; `detectron2://ImageNetPretrained/MSRA/R-50.pkl`. `http://…` needs the hash.
        fetch: Brings a remote file here.

    Returns:
        Path of the file.

    Raises:
        CheckpointError: If there is no such file, name or scheme, or it cannot be fetched.
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
            raise CheckpointError(f"{path} {fault}; give the file of weights itself")
        raise CheckpointError(_unknown(text, "no such file, and no such name in the catalog"))
    if scheme not in _SCHEMES:
        raise CheckpointError(f"{text}: unknown scheme {scheme!r}; known are {', '.join(f'{s}://' for s in _SCHEMES)}")
    return fetch(_SCHEMES[scheme](text, rest))


def _catalog(text: str, name: str) -> Remote:
    if name not in CATALOG:
        raise CheckpointError(_unknown(name, "no such name in the catalog"))
    return CATALOG[name]


def _torchvision(text: str, name: str) -> Remote:
    if name not in _RESNETS:
        raise CheckpointError(f"{text}: known are {', '.join(f'torchvision://{n}' for n in _RESNETS)}")
    return CATALOG[name]


def _hub(text: str, rest: str) -> Remote:
    owner_and_name, file = "/".join(rest.split("/")[:2]), "/".join(rest.split("/")[2:])
    if "/" not in owner_and_name or not _is_plain(rest):
        raise CheckpointError(f"{text}: expected hf://owner/repository or hf://owner/repository/file")
    return hub_file(owner_and_name, file) if file else hub_file(owner_and_name)


def _detectron2(text: str, rest: str) -> Remote:
    if not _is_plain(rest):
        raise CheckpointError(f"{text}: expected a path such as detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    return detectron2_file(rest)


def _url(text: str, rest: str) -> Remote:
    url, fragment = urldefrag(text)
    digest = ""
    if fragment:
        if not (found := re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)):
            raise CheckpointError(f"{text}: after '#', expected sha256= and 64 hex digits")
        digest = found[1].lower()
    name = Path(urlsplit(url).path).name
    if not name or not _is_plain(name):
        raise CheckpointError(f"{text}: the address does not end in a file name")
    # Many addresses end in the same name, such as model.safetensors.
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


def _unknown(name: str, where: str) -> str:
    hint = did_you_mean(name, CATALOG)
    return f"{name}: {where}.{hint} Names are {', '.join(CLASSIFIERS)} and others, see pvt_det/weights/catalog.py"
