"""Read weight files safely: only tensors, arrays and plain containers are loaded, and no code runs."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pvt_det.errors import CheckpointError
from pvt_det.utils.text import UNPRINTABLE
from pvt_det.weights.pickles import UnsafePickleError, load_arrays, load_torch

logger = logging.getLogger(__name__)

# Entries that may hold the weights in a file with other contents. The first one that exists is used.
_CONTAINERS = ("model", "state_dict_ema", "state_dict", "model_state_dict", "model_state", "blobs")
# First bytes of a file in torch.save's legacy format, from before the zip format.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_DTYPES = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    }
)
_ARRAY_DTYPES = frozenset(np.dtype(code) for code in "efdBbhiq?")
# A tensor that is larger than both this many bytes and its file is refused: few stored values are expanded to many.
_MAX_EXPANDED = 2**26
# Metadata key in the .safetensors files that this package writes. See `safetensors_digest`.
DIGEST_KEY = "content_sha256"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the weights in a `.pth`, `.pt`, `.bin`, `.safetensors` or Detectron2 `.pkl` file.

    The format is detected from the content. If the file has an entry such as `model`, `state_dict_ema`, `state_dict`
    or `blobs`, the weights are read from it.

    Args:
        path: The weight file.

    Returns:
        Tensors on the CPU under the names in the file.

    Raises:
        CheckpointError: If the file is missing, broken, not a checkpoint, holds no tensors, or would run code.
    """
    content = read_file(path)
    name = next((n for n in _CONTAINERS if isinstance(content, Mapping) and isinstance(content.get(n), Mapping)), None)
    found = content if name is None else content[name]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}. Expected a dictionary of tensors.")
    entries = _by_name(path, found)
    tensors = {k: v for k, v in entries.items() if isinstance(v, Tensor) or _has_numbers(v)}
    others = sorted(entries.keys() - tensors.keys())
    if not tensors:
        inside = ", ".join(map(repr, list(found)[:8])) or "nothing"
        raise CheckpointError(f"{path}: holds no tensors, only {inside}. Expected a state dict, bare or in 'model'.")
    most = max(_MAX_EXPANDED, path.stat().st_size)
    for key, value in tensors.items():
        if problem := _problem(value, most):
            raise CheckpointError(f"{path}: {key} is {problem}. Save it as a dense tensor, for example in float32.")
    if name:
        logger.info("%s: reading the weights from the entry %r", path, name)
    if others:
        logger.info("%s: skipped %d entries that are not tensors: %s", path, len(others), ", ".join(others[:10]))
    return {k: v if isinstance(v, Tensor) else _from_array(v) for k, v in tensors.items()}


def _by_name(path: Path, found: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert the keys to strings and check that they are unique and printable."""
    entries = {}
    for key, value in found.items():
        name = str(key)
        if name in entries:
            raise CheckpointError(f"{path}: two entries are named {name}. Rename one and save the file again.")
        if UNPRINTABLE.search(name):
            raise CheckpointError(
                f"{path}: invalid entry name {name[:100]!r}. Rename it; names may hold printable characters only."
            )
        entries[name] = value
    return entries


def _has_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"


def _from_array(array: npt.NDArray[Any]) -> Tensor:
    # Copied because the array may be read-only, and converted to this machine's byte order.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _problem(value: Tensor | npt.NDArray[Any], most: int) -> str:
    """Say why a tensor or array cannot be used as weights of at most `most` bytes; "" if it can."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.device.type != "cpu" or value.dtype not in _DTYPES:
            nested = ", nested" if value.is_nested else ""
            return f"a tensor of {value.dtype}, {value.layout}{nested}, on {value.device}"
    elif value.dtype.newbyteorder("=") not in _ARRAY_DTYPES:
        return f"an array of {value.dtype}"
    if value.nbytes > most:
        return f"a tensor of {value.nbytes:,} bytes, more than the file holds"
    return ""


def read_file(path: Path) -> Any:
    """Read a whole checkpoint file, with tensors on the CPU and containers and numbers unchanged.

    Args:
        path: The checkpoint file.

    Returns:
        The content of the file.

    Raises:
        CheckpointError: If the file is missing, broken, not a checkpoint, or would run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    read = _reader(path, start)
    try:
        return read(path)
    except CheckpointError:
        raise
    except UnsafePickleError as error:
        raise CheckpointError(
            f"{path}: refused because it holds code or objects ({error}). A checkpoint may hold only tensors and plain "
            "values. Ask its author for a .safetensors file or a plain state dict."
        ) from error
    # On a broken file, the readers of torch, safetensors and pickle can raise nearly any exception.
    except Exception as error:
        raise CheckpointError(
            f"{path}: broken or cut short ({type(error).__name__}: {_first_line(error)}). Download or copy it again."
        ) from error


def _reader(path: Path, start: bytes) -> Callable[[Path], Any]:
    if not start:
        raise CheckpointError(f"{path}: the file is empty. Download or copy it again.")
    # Checked first because the length at its beginning may look like the start of a web page or a zip file.
    if start[8:9] == b"{":
        return _read_safetensors
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: a web page (HTML or XML), not a checkpoint. Download the file itself.")
    if start.startswith(b"version https://"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the checkpoint itself. Run `git lfs pull`.")
    if start.startswith(b"PK"):
        return _read_torch_zip
    if start.startswith(_LEGACY_TORCH[: len(start)]):
        return load_torch
    if start[:1] == b"\x80" or path.suffix == ".pkl":
        return load_arrays
    raise CheckpointError(
        f"{path}: not a checkpoint (it begins with {start[:8]!r}). Expected .pth, .safetensors or Detectron2's .pkl."
    )


def _read_torch_zip(path: Path) -> Any:
    # PyTorch does not verify the checksums in its own zip files.
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError(f"{path}: a compressed zip archive. Expected a file written by torch.save.")
        if damaged := archive.testzip():
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} is wrong. Download or save it again.")
    return load_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if expected := metadata.get(DIGEST_KEY):
        with path.open("rb") as opened:
            found = safetensors_digest(opened)
        if found != expected:
            raise CheckpointError(f"{path} is damaged: its checksum is wrong. Download or save it again.")
    return safetensors.torch.load_file(path)


def safetensors_digest(file: BinaryIO) -> str:
    """Compute the SHA-256 of a .safetensors file's header, without the entry for this digest, and tensors.

    Args:
        file: The file, opened in binary mode at its beginning.

    Returns:
        The digest as 64 hex digits.
    """
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.get("__metadata__", {}).pop(DIGEST_KEY, None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:200]
