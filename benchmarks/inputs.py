"""The input suite: speed and exactness of decoding and augmenting images for classification.

All implementations run on one core. Their pixels are compared with Pillow's, in levels of 255, after resizing the image
to 224 pixels.
"""

from __future__ import annotations

import io
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from rich.table import Table
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from benchmarks.measure import median_ratio, time_interleaved
from pvt_det.data.imagenet.transforms import Augmentation, EvalTransform, TrainTransform, decode_rgb
from pvt_det.errors import DataError

_SIDE = 224
_CPU = torch.device("cpu")
# The published policy, but without noise in its magnitude, which makes timm fail sometimes with Pillow 13.
_RAND_AUGMENT = "rand-m9-inc1"


@dataclass(frozen=True)
class InputRow:
    """The result of one implementation at one step of the pipeline.

    Attributes:
        step: "decode", "resize", "training" (the whole pipeline) or "evaluation" (the whole pipeline).
        implementation: Name of the implementation. The first one of each step is this package's.
        images_per_s: Images per second on one core, the median over the rounds.
        speedup: This implementation's time divided by this package's.
        mean_difference: Mean difference from Pillow's pixels in levels of 255; None if the pixels are random.
        max_difference: Largest difference from Pillow's pixels in levels of 255, or None.
    """

    step: str
    implementation: str
    images_per_s: float
    speedup: float
    mean_difference: float | None = None
    max_difference: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the attributes by name, for JSON."""
        return asdict(self)


def run_inputs(folder: Path, limit: int, repeats: int) -> Iterator[InputRow]:
    """Measure the input pipeline on one thread.

    Args:
        folder: Folder with JPEG files, also in subfolders.
        limit: Maximum number of photos to read.
        repeats: Number of timed rounds.

    Yields:
        One row per step and implementation.

    Raises:
        DataError: The folder contains no JPEG files.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:limit]
    contents = [file.read_bytes() for file in files]
    if not contents:
        raise DataError(f"{folder}: contains no JPEG files. Set --data to a folder of photos.")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = [decode_rgb(content) for content in contents]
    resized = [_pillow_resize(_pillow(content)) for content in contents]
    yield from _rows("decode", _DECODERS, contents, repeats, resized, _pillow_resize)
    yield from _rows("resize", _RESIZERS, images, repeats, resized, lambda pixels: pixels)
    yield from _rows("training", _build_training(), contents, repeats)
    evaluate = EvalTransform(_SIDE, 0.875, "bicubic")
    yield from _rows("evaluation", {"pvt_det": lambda content: evaluate(decode_rgb(content))}, contents, repeats)


def input_table(rows: Sequence[InputRow]) -> Table:
    """Build the table of images per second and exactness.

    Args:
        rows: Results of all steps and implementations.
    """
    table = Table(
        caption="one core; speed-up: pvt_det over the implementation; differences from Pillow in levels of 255"
    )
    for heading in ("step", "implementation"):
        table.add_column(heading)
    for heading in ("images/s", "speed-up", "mean difference", "largest"):
        table.add_column(heading, justify="right")
    for row in rows:
        mean = "" if row.mean_difference is None else f"{row.mean_difference:.3f}"
        largest = "" if row.max_difference is None else f"{row.max_difference:.0f}"
        table.add_row(row.step, row.implementation, f"{row.images_per_s:.0f}", f"{row.speedup:.2f}x", mean, largest)
    return table


def _rows(
    step: str,
    calls: Mapping[str, Callable],
    inputs: Sequence,
    repeats: int,
    expected: Sequence[np.ndarray] | None = None,
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[InputRow]:
    rounds: dict[str, Callable[[], object]] = {name: _call_all(call, inputs) for name, call in calls.items()}
    seconds = time_interleaved(rounds, _CPU, repeats)
    ours = next(iter(calls))
    for name, call in calls.items():
        mean = largest = None
        if expected is not None and finish is not None:
            gaps = [np.abs(finish(call(i)).astype(int) - e) for i, e in zip(inputs, expected, strict=True)]
            mean, largest = float(np.mean([gap.mean() for gap in gaps])), float(max(gap.max() for gap in gaps))
        rate = len(inputs) / statistics.median(seconds[name])
        yield InputRow(step, name, rate, median_ratio(seconds[name], seconds[ours]), mean, largest)


def _call_all(call: Callable, inputs: Sequence) -> Callable[[], None]:
    def run() -> None:
        # All implementations make the same random choices.
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)
        for item in inputs:
            call(item)

    return run


def _pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def _pillow_half(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        return np.array(image.convert("RGB"))


def _opencv(content: bytes) -> np.ndarray:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), flags))


def _opencv_half(content: bytes) -> np.ndarray:
    flags = cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), flags))[..., ::-1]


def _torchvision(content: bytes) -> np.ndarray:
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return torchvision.io.decode_jpeg(data, torchvision.io.ImageReadMode.RGB).permute(1, 2, 0).numpy()


def _pillow_resize(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))


def _torch_resize(pixels: np.ndarray) -> np.ndarray:
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return F.resize(image, [_SIDE, _SIDE], InterpolationMode.BICUBIC, antialias=True).permute(1, 2, 0).numpy()


def _opencv_area(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def _opencv_cubic(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)


_DECODERS = {
    "simplejpeg (pvt_det)": decode_rgb,
    "Pillow": _pillow,
    "torchvision": _torchvision,
    "OpenCV": _opencv,
    "Pillow, half size": _pillow_half,
    "OpenCV, half size": _opencv_half,
}
_RESIZERS = {
    "torch uint8 (pvt_det)": _torch_resize,
    "Pillow": _pillow_resize,
    "OpenCV area": _opencv_area,
    "OpenCV cubic, no antialias": _opencv_cubic,
}


def _build_training() -> dict[str, Callable]:
    ours = TrainTransform(_SIDE, Augmentation(rand_augment=_RAND_AUGMENT))
    theirs = create_transform(
        _SIDE, is_training=True, auto_augment=_RAND_AUGMENT, interpolation="bicubic", use_prefetcher=True
    )
    return {
        "pvt_det": lambda content: ours(decode_rgb(content)),
        "timm on Pillow": lambda content: theirs(Image.fromarray(_pillow(content))),
    }
