"""The index of shards: where each file is, as NumPy arrays in one file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pvt_det.utils.files import open_atomically

MAX_CLASSES = 1_000_000
# Arrays by name, with one row per file: `keys` (name in the shard, bytes), `places` (number of the shard, offset and
# size in bytes), and what else is known: `labels` (class), `sizes` (width and height in pixels after EXIF rotation, 0
# for a file that is not a usable image) and `digests` (first 8 bytes of the SHA-256 of the content, little-endian).
Index = dict[str, npt.NDArray[Any]]
_FORMS = {"keys": ("S", ()), "places": ("i8", (3,)), "labels": ("i8", ()), "sizes": ("i4", (2,)), "digests": ("u8", ())}


def read_index(file: Path | IO[bytes], shard_sizes: Sequence[int], names: Collection[str]) -> Index:
    """Read and check an index.

    Args:
        file: The index file.
        shard_sizes: Size of each shard in bytes.
        names: The arrays to read.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The index is damaged or belongs to other shards. The message says why.
    """
    try:
        # The zip format has checksums, so flipped bits are found as well.
        with np.load(file, allow_pickle=False) as stored:
            index = {name: stored[name] for name in names}
    except FileNotFoundError:
        raise
    # On a damaged file, the readers of NumPy and zip can raise nearly any exception.
    except Exception as error:
        raise ValueError(str(error)) from error
    if problem := _problem(index, np.asarray(shard_sizes)):
        raise ValueError(problem)
    return index


def write_index(path: Path, index: Index) -> None:
    """Write an index atomically. The same arrays give the same bytes.

    Args:
        path: The file to write. Its folder must exist.
        index: The arrays.

    Raises:
        OSError: The file cannot be written.
    """
    with open_atomically(path) as file:
        np.savez(file, allow_pickle=False, **index)


def _problem(index: Index, shard_sizes: npt.NDArray[np.int64]) -> str:
    count = len(index["keys"])
    for name, array in index.items():
        kind, shape = _FORMS[name]
        if array.shape != (count, *shape) or (array.dtype.kind if kind == "S" else array.dtype.str[1:]) != kind:
            return "its arrays do not belong together"
    if not count:
        return "it is empty"
    places = index["places"]
    if places.min() < 0 or places[:, 0].max() >= len(shard_sizes):
        return "a position is not valid"
    # Subtracting, because a sum of two large numbers could overflow.
    sizes = shard_sizes[places[:, 0]]
    if (places[:, 1] > sizes).any() or (places[:, 2] > sizes - places[:, 1]).any():
        return "an image extends beyond its shard"
    labels = index.get("labels", np.zeros(1))
    return "" if labels.min() >= 0 and labels.max() < MAX_CLASSES else "a label is out of range"
