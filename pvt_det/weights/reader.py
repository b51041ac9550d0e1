"""Read weight files without running anything that is in them: tensors, arrays and plain containers only."""

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
from pvt_det.weights.pickles import NotPlainError, load_arrays, load_torch

logger = logging.getLogger(__name__)

# Where the weights stand in a file that holds more than weights; the first that is there is taken.
_CONTAINERS = ("model", "state_dict_ema", "state_dict", "model_state_dict", "model_state", "blobs")
# A file that torch.save wrote before its zip format begins with this pickled number.
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_DTYPES = frozenset(
    {
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    }
)
_ARRAY_DTYPES = frozenset(np.dtype(code) for code in "efdBbhiq?")
# Bytes that a tensor may have in whatever file; with more than both this and the file has, few stand there for many.
_MOST_EXPANDED = 2**26
# Metadata key of our own .safetensors files, see `safetensors_digest`.
DIGEST_KEY = "content_sha256"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the weights in a `.pth`, `.pt`, `.bin`, `.safetensors` or Detectron2 `.pkl` file; the content decides.

    Weights that lie in a `model`, `state_dict_ema`, `state_dict` or `blobs` entry are taken out of it.

    Returns:
        Tensors on the CPU under the names in the file.

    Raises:
        CheckpointError: If the file is missing, broken, no checkpoint, holds no tensors, or would run code.
    """
    content = read_file(path)
    name = next((n for n in _CONTAINERS if isinstance(content, Mapping) and isinstance(content.get(n), Mapping)), None)
    found = content if name is None else content[name]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds one {type(found).__name__}, expected a dictionary of tensors")
    entries = _by_name(path, found)
    tensors = {k: v for k, v in entries.items() if isinstance(v, Tensor) or _has_numbers(v)}
    others = sorted(entries.keys() - tensors.keys())
    if not tensors:
        inside = ", ".join(map(repr, list(found)[:8])) or "nothing"
        raise CheckpointError(f"{path}: no tensors in it, only {inside}; expected a state dict, plain or under 'model'")
    most = max(_MOST_EXPANDED, path.stat().st_size)
    for key, value in tensors.items():
        if problem := _problem(value, most):
            raise CheckpointError(f"{path}: {key} is {problem}; save it as a plain tensor, such as of float32")
    if name:
        logger.info("%s: weights taken from its entry %r", path, name)
    if others:
        logger.info("%s: left out %d entries that are no tensors: %s", path, len(others), ", ".join(others[:10]))
    return {k: v if isinstance(v, Tensor) else _from_array(v) for k, v in tensors.items()}


def _by_name(path: Path, found: Mapping[Any, Any]) -> dict[str, Any]:
    """The entries under names that are text, fit for a line of a log."""
    entries = {}
    for key, value in found.items():
        name = str(key)
        if name in entries:
            raise CheckpointError(f"{path}: two of its entries are called {name}; rename one and save it again")
        if UNPRINTABLE.search(name):
            raise CheckpointError(
                f"{path}: an entry is called {name[:100]!r}; names may hold printable characters only, rename it"
            )
        entries[name] = value
    return entries


def _has_numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"


def _from_array(array: npt.NDArray[Any]) -> Tensor:
    # A copy, as it may not be written to; and of the bytes' order that this machine has.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _problem(value: Tensor | npt.NDArray[Any], most: int) -> str:
    """What keeps a tensor or array from being used as weights of at most so many bytes; "" where nothing does."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.device.type != "cpu" or value.dtype not in _DTYPES:
            nested = ", nested" if value.is_nested else ""
            return f"a tensor of {value.dtype}, {value.layout}{nested}, on {value.device}"
    elif value.dtype.newbyteorder("=") not in _ARRAY_DTYPES:
        return f"an array of {value.dtype}"
    if value.nbytes > most:
        return f"one of {value.nbytes:,} bytes, more than are in the file"
    return ""


def read_file(path: Path) -> Any:
    """Read a whole checkpoint file, tensors on the CPU, containers and numbers as they are.

    Raises:
        CheckpointError: If the file is missing, broken, no checkpoint, or would run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    read = _reader(path, start)
    try:
        return read(path)
    except CheckpointError:
        raise
    except NotPlainError as error:
        raise CheckpointError(
            f"{path}: refused, since a checkpoint may hold tensors and plain values only and this one holds code or "
            f"objects ({error}); ask its maker for a .safetensors file or a plain state dict"
        ) from error
    # A broken file can raise nearly anything from the readers of torch, safetensors and pickle.
    except Exception as error:
        raise CheckpointError(
            f"{path}: broken or cut short ({type(error).__name__}: {_first_line(error)}); fetch it again"
        ) from error


def _reader(path: Path, start: bytes) -> Callable[[Path], Any]:
    if not start:
        raise CheckpointError(f"{path}: the file is empty; fetch it again")
    # First, since the length that it begins with may look like the beginning of a web page or of a zip file.
    if start[8:9] == b"{":
        return _read_safetensors
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: a web page (HTML or XML), not a checkpoint; the download went wrong")
    if start.startswith(b"version https://"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the checkpoint itself; run `git lfs pull`")
    if start.startswith(b"PK"):
        return _read_torch_zip
    if start.startswith(_LEGACY_TORCH[: len(start)]):
        return load_torch
    if start[:1] == b"\x80" or path.suffix == ".pkl":
        return load_arrays
    raise CheckpointError(
        f"{path}: not a checkpoint (it begins with {start[:8]!r}); expected .pth, .safetensors or Detectron2's .pkl"
    )


def _read_torch_zip(path: Path) -> Any:
    # PyTorch does not check the sums that its own zip files carry.
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError(f"{path}: a compressed zip archive, not a file written by torch.save")
        if damaged := archive.testzip():
            raise CheckpointError(f"{path}: damaged, the checksum of {damaged} is wrong; fetch or save it again")
    return load_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if expected := metadata.get(DIGEST_KEY):
        with path.open("rb") as opened:
            found = safetensors_digest(opened)
        if found != expected:
            raise CheckpointError(f"{path}: damaged, its content is not what was saved; fetch or save it again")
    return safetensors.torch.load_file(path)


def safetensors_digest(file: BinaryIO) -> str:
    """SHA-256 of all that a .safetensors file tells: its header (but for this digest's own entry) and its tensors."""
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.get("__metadata__", {}).pop(DIGEST_KEY, None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")[:200]
