"""Files of NumPy arrays that processes share by mapping them into memory. Damage is noticed on opening.

The files have the safetensors format, which holds no code. Their metadata are a SHA-256 of everything, and the facts
that belong to the arrays, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from pvt_det.utils.files import open_atomically

Arrays = dict[str, npt.NDArray[Any]]
# Types of elements, with safetensors' names.
_TYPES = {"BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "I32": np.int32, "I64": np.int64, "F64": np.float64}
_LENGTH_BYTES = 8


class DamagedFileError(Exception):
    """A file of arrays is cut short, changed, or has another format."""


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """Write arrays to a file, atomically.

    Args:
        path: The file to write or replace. Its folder must exist.
        arrays: Arrays by name, of one of the types bool, uint8, int8, int32, int64 and float64.
        facts: Values that belong to them, for JSON.

    Raises:
        OSError: The file cannot be written. The old file is unchanged.
    """
    text = json.dumps(facts)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with open_atomically(path) as file:
        # With a single key of metadata, the same content gives the same bytes.
        file.write(save(contiguous, {"facts": f"{_digest(contiguous, text)} {text}"}))


def map_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Open a file that `write_arrays` wrote. Its content is read from disk when it is used, and shared by processes.

    Args:
        path: The file.

    Returns:
        The arrays by name, which are read-only, and the facts.

    Raises:
        DamagedFileError: The file is cut short or changed, or was written by other code.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _parse(content)
        # A damaged header can raise nearly any exception.
        except Exception as error:
            if isinstance(error, OSError):
                raise
            raise DamagedFileError(f"{path} is damaged ({error})") from error


def _parse(content: mmap.mmap) -> tuple[Arrays, dict[str, Any]]:
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if start > len(content):
        raise ValueError("its header is cut short")
    header = json.loads(content[_LENGTH_BYTES:start])
    digest, text = header.pop("__metadata__")["facts"].split(" ", 1)
    arrays = {}
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        array: npt.NDArray[Any] = np.frombuffer(
            memoryview(content)[start + first : start + end], _TYPES[entry["dtype"]]
        )
        arrays[name] = array.reshape(entry["shape"])
    if _digest(arrays, text) != digest:
        raise ValueError("its SHA-256 differs from the recorded one")
    return arrays, json.loads(text)


def _digest(arrays: Mapping[str, npt.NDArray[Any]], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def pack_strings(strings: Iterable[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pack strings into arrays.

    Args:
        strings: The strings.

    Returns:
        Their UTF-8, one after the other, and the end of each string in it. Unpaired surrogates are kept.
    """
    encoded = [text.encode("utf-8", errors="surrogatepass") for text in strings]
    ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends


def split_strings(content: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], part: range | None = None) -> list[str]:
    """Return strings that `pack_strings` packed.

    Args:
        content: Their UTF-8.
        ends: The end of each string.
        part: Indices of neighboring strings. None for all of them.
    """
    part = range(len(ends)) if part is None else part
    if not part:
        return []
    first = int(ends[part.start - 1]) if part.start else 0
    stops = (ends[part.start : part.stop] - first).tolist()
    text = content[first : first + stops[-1]].tobytes()
    return [text[a:b].decode("utf-8", errors="surrogatepass") for a, b in zip([0, *stops], stops, strict=False)]
