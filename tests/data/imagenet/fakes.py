"""Small generated classification data sets."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """Return a JPEG file of smooth random colors, with `size` = (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def class_folders(root: Path, train: int = 6, val: int = 3, classes: tuple[str, ...] = ("ant", "bee", "cat")) -> Path:
    """Write `train` and `val` images of each class into class folders."""
    for split, count, base in (("train", train, 0), ("val", val, 10_000)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:03}.jpg").write_bytes(jpeg(base + 100 * label + number))
    return root


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
