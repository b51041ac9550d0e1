"""What image files tell besides their pixels: EXIF rotation, and whether two of them show the same."""

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

# Sides of the grey picture whose neighbours are compared, and how many of the 256 bits may differ for "looks alike".
_GRID = 16
_ALIKE = 10


@dataclass(frozen=True)
class FileFacts:
    """Of one image file.

    Attributes:
        digest: of its bytes.
        is_turned: whether its EXIF tag turns or mirrors the pixels.
        look: 256 bits as 32 bytes, alike for pictures that look alike; empty where not asked for.
    """

    digest: str
    is_turned: bool
    look: bytes


def read_facts(images: Mapping[int, Path], *, looks: bool) -> dict[int, FileFacts]:
    """Read the facts of image files, by id; a file that cannot be read has none.

    Args:
        images: files by id.
        looks: decode the images too, for `FileFacts.look`.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda path: _facts(path, looks), images.values())
        return {image_id: facts for image_id, facts in zip(images, found, strict=True) if facts is not None}


def _facts(path: Path, looks: bool) -> FileFacts | None:
    try:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        return FileFacts(digest, read_orientation(path) != 1, _look(path) if looks else b"")
    except (OSError, DataError):
        return None


def _look(path: Path) -> bytes:
    """The "difference hash": whether each pixel of a small grey picture is brighter than its left neighbour."""
    small = Image.fromarray(read_image(path, "L")[:, :, 0]).resize((_GRID + 1, _GRID), Image.Resampling.BOX)
    levels = np.asarray(small, dtype=np.int16)
    return np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes()


def same_files(facts: Mapping[int, FileFacts]) -> list[list[int]]:
    """Groups of ids whose files are the same, byte for byte."""
    groups: dict[str, list[int]] = {}
    for image_id, fact in facts.items():
        groups.setdefault(fact.digest, []).append(image_id)
    return [group for group in groups.values() if len(group) > 1]


def shared_images(ours: Mapping[int, FileFacts], theirs: Mapping[int, FileFacts]) -> list[tuple[int, int, bool]]:
    """Pairs of images that are in both sets.

    Returns:
        The id in either set, and whether the files are the same; otherwise they look alike.
    """
    digests = {fact.digest: image_id for image_id, fact in ours.items()}
    ids, looks = list(ours), _bits(ours)
    pairs = []
    for other_id, fact in theirs.items():
        if fact.digest in digests:
            pairs.append((digests[fact.digest], other_id, True))
        elif fact.look and len(looks):
            distances = np.bitwise_count(looks ^ np.frombuffer(fact.look, np.uint64)).sum(axis=1)
            if distances.min() <= _ALIKE:
                pairs.append((ids[int(distances.argmin())], other_id, False))
    return pairs


def _bits(facts: Mapping[int, FileFacts]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(b"".join(fact.look for fact in facts.values()), np.uint64).reshape(-1, _GRID * _GRID // 64)
