"""Write the results of a prediction, in worker processes while the model runs."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic

import torch

from pvt_det.data.workers import start_worker
from pvt_det.errors import PvtDetError
from pvt_det.inference.files import OutputFiles, Prediction, Written
from pvt_det.inference.reading import ReadImage
from pvt_det.inference.sources import Source
from pvt_det.utils.visualizer import Picture

# The output folder, in a worker process.
_files: OutputFiles[Any] | None = None


@dataclass(frozen=True)
class Submitted:
    """A result that was submitted.

    Attributes:
        source: The image.
        size: Height and width of the image in pixels.
        milliseconds: Time that the model took.
        written: What was written, in the future.
    """

    source: Source
    size: tuple[int, int]
    milliseconds: float
    written: Future[Written]


class ResultWriter(Generic[Prediction]):
    """Context manager that draws and saves the results of images.

    Args:
        files: The output folder. The journal is left to the main process.
        workers: Number of worker processes. 0 writes in this process.
    """

    def __init__(self, files: OutputFiles[Prediction], workers: int) -> None:
        self._files = files
        self._waiting: deque[Submitted] = deque()
        self._pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(files,)) if workers else None

    def __enter__(self) -> ResultWriter[Prediction]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._pool is not None:
            # After an error, only what the processes have begun is finished. A second Ctrl-C does not wait for that.
            self._pool.shutdown(wait=kind is None or issubclass(kind, Exception), cancel_futures=True)

    def submit(self, source: Source, image: ReadImage, prediction: Prediction, milliseconds: float) -> None:
        """Start to write the result of an image.

        Args:
            source: The image.
            image: The image, as it was read.
            prediction: The prediction for the image.
            milliseconds: Time that the model took.
        """
        if self._pool is None:
            written = _done(lambda: _write(self._files, source, image.image, prediction))
        else:
            # Pickled by value: the pool would put each of the many small tensors into shared memory.
            written = self._pool.submit(_write_pickled, pickle.dumps((source, image.image, prediction)))
        self._waiting.append(Submitted(source, image.size, milliseconds, written))

    def finished(self, keep: int = 0) -> Iterator[Submitted]:
        """Yield the results that are written, in the order in which they were submitted.

        Args:
            keep: Number of results that may stay unfinished. If there are more, this waits until they are written.
        """
        while self._waiting and (len(self._waiting) > keep or self._waiting[0].written.done()):
            wait([self._waiting[0].written])
            yield self._waiting.popleft()


def _done(work: Callable[[], Written]) -> Future[Written]:
    future: Future[Written] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future


def _start(files: OutputFiles[Any]) -> None:
    """Initialize a worker process."""
    global _files
    start_worker(0)
    torch.set_num_threads(1)
    _files = files


def _write_pickled(content: bytes) -> Written:
    assert _files is not None
    return _write(_files, *pickle.loads(content))  # noqa: S301 (from the main process)


def _write(files: OutputFiles[Any], source: Source, image: Path | Picture, prediction: Any) -> Written:
    try:
        return files.write(source, image, prediction)
    except (OSError, PvtDetError):
        raise
    except Exception as error:
        raise RuntimeError(f"The results of {source.shown} cannot be written ({error!r})") from error
