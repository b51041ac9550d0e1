"""Read pickles safely: only NumPy arrays, plain containers and a few harmless classes are allowed."""

from __future__ import annotations

import mmap
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric


class Inert:
    """Placeholder without data for a harmless class of another package, pickled with the weights.

    Args:
        args: Ignored.
    """

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle refers to code or to a class that is neither an array nor a plain container."""


# NumPy 2 moved these modules from `numpy.core` to `numpy._core`.
_ARRAYS: dict[str, Callable] = {
    f"numpy.{core}.{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for core in ("core", "_core")
    for module, name in ((multiarray, "_reconstruct"), (multiarray, "scalar"), (numeric, "_frombuffer"))
} | {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
_DTYPES = tuple({type(np.dtype(code)) for code in "?bhilqBHILQefdSU"})
# Beginning of the messages with which torch's reader refuses anything else.
_TORCH_REFUSES = re.compile(
    r"(Unsupported (global|class)|Trying to (load|call)|Can only|Only persistent_load).{,200}?(?=\. |\n|$)"
)
# In its other messages, the reason follows advice to read the file without this protection, which is not shown.
_ADVICE_ENDS = "WeightsUnpickler error: "
# Torch allows bytearray, with which a pickle of a few bytes can allocate gigabytes. No library saves weights with it.
_BYTEARRAY = b"\nbytearray\n"
# Training checkpoints of timm, MMEngine and the published classification code hold these in addition to the weights.
_INERT = ("argparse.Namespace", "mmengine.logging.history_buffer.HistoryBuffer")


def load_torch(path: Path) -> Any:
    """Read a file written by torch.save that holds tensors, arrays, containers and numbers.

    Objects of the harmless classes are returned without data.

    Args:
        path: The file.

    Returns:
        The content of the file, with tensors on the CPU.

    Raises:
        UnsafePickleError: If the file refers to anything else.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_BYTEARRAY) >= 0:
            raise UnsafePickleError("it refers to builtins.bytearray")
    allowed: list[Any] = [(value, name) for name, value in _ARRAYS.items()]
    allowed += [*_DTYPES, *((type(name.rpartition(".")[2], (Inert,), {}), name) for name in _INERT)]
    try:
        with torch.serialization.safe_globals(allowed):
            # Explicit because TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD overrides the default.
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refusal := _TORCH_REFUSES.search(str(error)):
            raise UnsafePickleError(refusal[0]) from error
        raise pickle.UnpicklingError(str(error).rpartition(_ADVICE_ENDS)[2]) from error


def load_arrays(path: Path) -> Any:
    """Read a plain pickle of NumPy arrays and containers, including pickles of Python 2.

    Args:
        path: The file.

    Returns:
        The content of the file.

    Raises:
        UnsafePickleError: If the file refers to anything else.
        ValueError: If the file is broken.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        # Otherwise a few broken bytes could allocate gigabytes, for a missing string or for slots of objects.
        for opcode, argument, _ in pickletools.genops(file):
            if "PUT" in opcode.name and isinstance(argument, int) and argument > size:
                raise ValueError(f"{opcode.name} {argument} in a file of {size} bytes")
        file.seek(0)
        return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {**_ARRAYS, "collections.OrderedDict": OrderedDict, "_codecs.encode": _encode_latin1}
        if (value := allowed.get(f"{module}.{name}")) is None:
            raise UnsafePickleError(f"it refers to {module}.{name}")
        return value


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Encode an array's bytes, which old pickle protocols store as a string and a call to this."""
    if encoding != "latin1":
        raise UnsafePickleError(f"it uses the encoding {encoding!r}")
    return text.encode("latin1")
