"""Read facts about image files: EXIF rotation, a digest to find identical files, and a hash to find similar images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pvt_det.data.images import read_image, read_orientation
from pvt_det.errors import DataError

# Side of the gray thumbnail whose neighboring pixels are compared.
_GRID = 16
# Two images count as similar if at most this many of their 256 bits differ.
_MAX_DISTANCE = 10


@dataclass(frozen=True)
class FileFacts:
    """Facts about one image file.

    Attributes:
        digest: Hexadecimal digest of the file's bytes.
        is_rotated: Whether the EXIF orientation tag rotates or mirrors the pixels.
        perceptual_hash: 256 bits as 32 bytes. Similar images have similar bits. Empty if not requested.
    """

    digest: str
    is_rotated: bool
    perceptual_hash: bytes


def read_facts(images: Mapping[int, Path], *, perceptual_hashes: bool) -> dict[int, FileFacts]:
    """Read facts about image files in parallel.

    Args:
        images: Image files by image id.
        perceptual_hashes: Also decode the images to compute `FileFacts.perceptual_hash`.

    Returns:
        The facts by image id, without the files that cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda path: _facts(path, perceptual_hashes), images.values())
        return {image_id: facts for image_id, facts in zip(images, found, strict=True) if facts is not None}


def _facts(path: Path, perceptual_hashes: bool) -> FileFacts | None:
    try:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        return FileFacts(digest, read_orientation(path) != 1, _difference_hash(path) if perceptual_hashes else b"")
    except (OSError, DataError):
        return None


def _difference_hash(path: Path) -> bytes:
    """Return one bit per pixel of a gray thumbnail: whether it is brighter than its left neighbor."""
    small = Image.fromarray(read_image(path, "L")[:, :, 0]).resize((_GRID + 1, _GRID), Image.Resampling.BOX)
    levels = np.asarray(small, dtype=np.int16)
    return np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes()


def same_files(facts: Mapping[int, FileFacts]) -> list[list[int]]:
    """Group images whose files are identical, byte for byte.

    Args:
        facts: Facts by image id.

    Returns:
        The image ids of each group of two or more identical files.
    """
    groups: dict[str, list[int]] = {}
    for image_id, fact in facts.items():
        groups.setdefault(fact.digest, []).append(image_id)
    return [group for group in groups.values() if len(group) > 1]


def shared_images(train: Mapping[int, FileFacts], val: Mapping[int, FileFacts]) -> list[tuple[int, int, bool]]:
    """Find images that are in both of two data sets.

    Args:
        train: Facts of the first data set by image id.
        val: Facts of the second data set by image id.

    Returns:
        For each pair, the image id in `train`, the image id in `val`, and whether the files are identical (True) or the
        images only look similar (False).
    """
    digests = {fact.digest: image_id for image_id, fact in train.items()}
    ids, hashes = list(train), _bits(train)
    pairs = []
    for val_id, fact in val.items():
        if fact.digest in digests:
            pairs.append((digests[fact.digest], val_id, True))
        elif fact.perceptual_hash and len(hashes):
            distances = np.bitwise_count(hashes ^ np.frombuffer(fact.perceptual_hash, np.uint64)).sum(axis=1)
            if distances.min() <= _MAX_DISTANCE:
                pairs.append((ids[int(distances.argmin())], val_id, False))
    return pairs


def _bits(facts: Mapping[int, FileFacts]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(fact.perceptual_hash for fact in facts.values()), np.uint64).reshape(
        -1, _GRID * _GRID // 64
    )
