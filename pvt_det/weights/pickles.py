"""What a pickle may name: NumPy arrays, plain containers and a few harmless classes. Anything else is refused."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray


class Inert:
    """Stands for a harmless class of another package whose instances lie next to the weights; keeps nothing."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# NumPy moved this module between its versions 1 and 2.
_ARRAYS: dict[str, Callable] = {
    f"numpy.{core}.multiarray.{name}": getattr(multiarray, name)
    for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")
} | {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
_DTYPES = tuple({type(np.dtype(code)) for code in "?bhilqBHILQefdSU"})
# Training checkpoints of timm, of the published classification code and of MMEngine carry these beside the weights.
_INERT = ("argparse.Namespace", "mmengine.logging.history_buffer.HistoryBuffer")


def load_torch(path: Path) -> Any:
    """Read a file of torch.save: tensors, arrays, containers, numbers; the inert classes come back empty.

    Raises:
        pickle.UnpicklingError: If the file names anything else.
    """
    allowed: list[Any] = [(value, name) for name, value in _ARRAYS.items()]
    allowed += [*_DTYPES, *((type(name.rpartition(".")[2], (Inert,), {}), name) for name in _INERT)]
    with torch.serialization.safe_globals(allowed):
        # Said here, since TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD takes effect only where it is not.
        return torch.load(path, map_location="cpu", weights_only=True)


def load_arrays(path: Path) -> Any:
    """Read a plain pickle of NumPy arrays and containers, Python 2's included.

    Raises:
        pickle.UnpicklingError: If the file names anything else.
    """
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {**_ARRAYS, "collections.OrderedDict": OrderedDict, "_codecs.encode": _encode_latin1}
        if (value := allowed.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return value


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Python 3 writes the bytes of an array to old pickle protocols as text with a call to this."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")
