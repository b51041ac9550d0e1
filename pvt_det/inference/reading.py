"""Read and resize the images of a prediction, in worker processes while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pvt_det.data.images import read_image
from pvt_det.data.workers import WorkerLoader, start_worker
from pvt_det.errors import DataError, PvtDetError
from pvt_det.inference.pixels import Prepared
from pvt_det.inference.sources import Source
from pvt_det.inference.urls import read_image_url

Pixels: TypeAlias = NDArray[np.uint8]
# Turns the pixels of an image into what the model is given, as `BasePredictor.preparation` does.
Prepare: TypeAlias = Callable[[Pixels], dict[str, Any]]


@dataclass(frozen=True)
class ReadImage:
    """An image that was read.

    Attributes:
        image: The image to draw on: the file, or the pixels `H×W×3` uint8 RGB if this process has them.
        given: What the predictor is called with.
        size: Height and width in pixels.
    """

    image: Path | Pixels
    given: Prepared | Pixels
    size: tuple[int, int]


def read_images(
    sources: Sequence[Source], prepare: Prepare | None, workers: int, batch_size: int
) -> Generator[ReadImage | PvtDetError]:
    """Read images in their order, ahead of the one that is requested.

    Worker processes send only resized images, since the pixels of photographs would fill the shared memory. Whoever
    draws on a file reads it again.

    Args:
        sources: The images.
        prepare: Function to apply to the pixels of an image where it is read. None gives the predictor the pixels.
        workers: Number of worker processes. 0 reads an image in this process when it is requested.
        batch_size: Number of images that the model is given at a time. Workers read the next ones while it runs.

    Yields:
        An image, or the error if it cannot be read.

    Raises:
        RuntimeError: Reading an image failed for another reason than the image, or a worker process was killed.
    """
    loader = WorkerLoader(
        _Images(sources, prepare, keep_pixels=workers == 0),
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=max(2, -(-batch_size // workers)) if workers else None,
        worker_init_fn=start_worker,
        # Without this generator, creating an iterator would draw from torch's global one.
        generator=torch.Generator().manual_seed(0),
    )
    for source, item in zip(sources, loader, strict=True):
        if isinstance(item, PvtDetError):
            yield item
            continue
        sent, record, size = item
        pixels: Any = None if sent is None else sent.numpy()
        image = source.path if workers and isinstance(source.path, Path) else pixels
        yield ReadImage(image, pixels if record is None else Prepared(image, record), size)


class _Images(Dataset[Any]):
    """The images of `read_images`, read on access.

    Items are the pixels or None, what `prepare` returned or None, and the size; or the error.
    """

    def __init__(self, sources: Sequence[Source], prepare: Prepare | None, *, keep_pixels: bool) -> None:
        self._sources = sources
        self._prepare = prepare
        self._keep_pixels = keep_pixels

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> tuple[Tensor | None, dict[str, Any] | None, tuple[int, int]] | PvtDetError:
        path = self._sources[index].path
        try:
            pixels = read_image(path, "RGB") if isinstance(path, Path) else read_image_url(path)
            record = self._prepare(pixels) if self._prepare else None
        except DataError as error:
            # Returned, because the message of an error that a worker raises would contain a traceback.
            return error
        except Exception as error:
            raise RuntimeError(f"{self._sources[index].shown} cannot be read") from error
        is_sent = self._keep_pixels or record is None or not isinstance(path, Path)
        return torch.from_numpy(pixels) if is_sent else None, record, (pixels.shape[0], pixels.shape[1])


def _unchanged(item: Any) -> Any:
    return item
