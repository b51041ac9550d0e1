"""What a pickle may name: NumPy arrays, plain containers and a few harmless classes. Anything else is refused."""

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
    """Stands for a harmless class of another package whose instances lie next to the weights; keeps nothing."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class NotPlainError(pickle.UnpicklingError):
    """A pickle names something that is neither array nor container: code, or an object of some class."""


# NumPy moved these modules between its versions 1 and 2.
_ARRAYS: dict[str, Callable] = {
    f"numpy.{core}.{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for core in ("core", "_core")
    for module, name in ((multiarray, "_reconstruct"), (multiarray, "scalar"), (numeric, "_frombuffer"))
} | {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
_DTYPES = tuple({type(np.dtype(code)) for code in "?bhilqBHILQefdSU"})
# How torch's reader begins to say that it met something else.
_TORCH_REFUSES = re.compile(
    r"(Unsupported (global|class)|Trying to (load|call)|Can only|Only persistent_load).{,200}?(?=\. |\n|$)"
)
# What it says of any other fault stands after its advice, which is to read the file without this protection.
_ADVICE_ENDS = "WeightsUnpickler error: "
# A few bytes of a pickle would ask for gigabytes with it. Torch allows it, and nothing that saves weights writes it.
_BYTEARRAY = b"\nbytearray\n"
# Training checkpoints of timm, of the published classification code and of MMEngine carry these beside the weights.
_INERT = ("argparse.Namespace", "mmengine.logging.history_buffer.HistoryBuffer")


def load_torch(path: Path) -> Any:
    """Read a file of torch.save: tensors, arrays, containers, numbers; the inert classes come back empty.

    Raises:
        NotPlainError: If the file names anything else.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_BYTEARRAY) >= 0:
            raise NotPlainError("it names builtins.bytearray")
    allowed: list[Any] = [(value, name) for name, value in _ARRAYS.items()]
    allowed += [*_DTYPES, *((type(name.rpartition(".")[2], (Inert,), {}), name) for name in _INERT)]
    try:
        with torch.serialization.safe_globals(allowed):
            # Said here, since TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD takes effect only where it is not.
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refusal := _TORCH_REFUSES.search(str(error)):
            raise NotPlainError(refusal[0]) from error
        raise pickle.UnpicklingError(str(error).rpartition(_ADVICE_ENDS)[2]) from error


def load_arrays(path: Path) -> Any:
    """Read a plain pickle of NumPy arrays and containers, Python 2's included.

    Raises:
        NotPlainError: If the file names anything else.
        ValueError: If it is broken.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        # A few broken bytes would otherwise ask for gigabytes: of a text that is not there, or of places for objects.
        for opcode, argument, _ in pickletools.genops(file):
            if "PUT" in opcode.name and isinstance(argument, int) and argument > size:
                raise ValueError(f"{opcode.name} {argument} in a file of {size} bytes")
        file.seek(0)
        return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {**_ARRAYS, "collections.OrderedDict": OrderedDict, "_codecs.encode": _encode_latin1}
        if (value := allowed.get(f"{module}.{name}")) is None:
            raise NotPlainError(f"it names {module}.{name}")
        return value


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Python 3 writes the bytes of an array to old pickle protocols as text with a call to this."""
    if encoding != "latin1":
        raise NotPlainError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")
