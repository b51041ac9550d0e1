"""Write videos that browsers play: H.264 with PyAV, or MPEG-4 with OpenCV if PyAV is not installed."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

NO_H264 = (
    "The videos are written as MPEG-4, which browsers do not play, because PyAV is not installed. For H.264, install "
    "it with: pip install av"
)
_QUALITY = "23"  # x264's constant rate factor; lower is better and larger
_SPEED = "veryfast"  # x264's preset; the slower ones take longer than the model
_MAX_RATE_DENOMINATOR = 1001  # as in 30000/1001 frames per second
# The index comes first in the file, so that a browser can start before it has all of it.
_INDEX_FIRST = {"movflags": "faststart"}
# Each fragment has an index of its own, and is written to the file at once.
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}


def writes_h264() -> bool:
    """Return whether videos are written as H.264, which needs PyAV."""
    return find_spec("av") is not None


class VideoFile:
    """Writes a video in MP4 format.

    As a context manager, it closes the file at the end, also if an error ends it.

    Args:
        path: The file to write. Its folder is created if it does not exist.
        rate: Frames per second.
        is_live: Whether the end of the video is not known. H.264 is then written in fragments, so that memory does not
            grow and that the file can be played even if the process is killed.

    Attributes:
        frames: Number of written frames, with repeated ones.
    """

    def __init__(self, path: Path, rate: float, *, is_live: bool = False) -> None:
        self.path = path
        self.rate = rate
        self.is_live = is_live
        self.frames = 0
        self._encoder: _Encoder | None = None
        self._last: NDArray[np.uint8] | None = None

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        # The error that ended the block is the one to report.
        with suppress(OSError):
            self.close()

    def add(self, frame: NDArray[np.uint8], position: int | None = None) -> None:
        """Write a frame.

        Args:
            frame: `H×W×3` uint8 RGB image. All frames must have the same size.
            position: Number of the frame in the written video, from 0. The frame before is repeated up to there, so
                that frames left out do not change the speed. None writes the frame after the one before.

        Raises:
            OSError: The file cannot be created or written, for example because the disk is full.
        """
        if self._encoder is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            height, width = frame.shape[:2]
            # H.264 with 4:2:0 color, the only one that all browsers play, needs even sides.
            size = (width + width % 2, height + height % 2)
            if writes_h264():
                self._encoder = _H264(self.path, self.rate, size, _FRAGMENTS if self.is_live else _INDEX_FIRST)
            else:
                self._encoder = _Mpeg4(self.path, self.rate, size)
        height, width = frame.shape[:2]
        padded = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        while self._last is not None and position is not None and self.frames < position:
            self._encoder.add(self._last)
            self.frames += 1
        self._encoder.add(padded)
        self.frames += 1
        self._last = padded

    def close(self) -> None:
        """Close the file and check that it is complete. Nothing is written if no frame was added.

        Raises:
            OSError: The file is incomplete, for example because the disk is full.
        """
        if self._encoder is None:
            return
        encoder, self._encoder = self._encoder, None
        encoder.close()
        # OpenCV reports no errors.
        written = cv2.VideoCapture(str(self.path))
        found = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if found != self.frames:
            raise OSError(
                errno.EIO, f"only {found} of {self.frames} frames were written, maybe the disk is full", str(self.path)
            )


class _Encoder(ABC):
    """An open video file."""

    @abstractmethod
    def add(self, frame: NDArray[np.uint8]) -> None:
        """Encode an `H×W×3` RGB frame."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and close the file."""


class _Mpeg4(_Encoder):
    """MPEG-4 Part 2, the best codec that OpenCV's packages contain.

    Args:
        path: The file to write.
        rate: Frames per second.
        size: Width and height of the frames in pixels, both even.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not self._writer.isOpened():
            raise OSError(errno.EIO, "OpenCV cannot create the video", str(path))

    def add(self, frame: NDArray[np.uint8]) -> None:
        self._writer.write(frame[:, :, ::-1])

    def close(self) -> None:
        self._writer.release()


class _H264(_Encoder):
    """H.264, which all browsers play.

    Args:
        path: The file to write.
        rate: Frames per second.
        size: Width and height of the frames in pixels, both even.
        layout: Options of FFmpeg's MP4 writer.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int], layout: dict[str, str]) -> None:
        import av

        self._path = path
        self._av: Any = av
        with self._named_errors():
            self._container = av.open(str(path), "w", format="mp4", options=layout)
            rate_fraction = Fraction(rate).limit_denominator(_MAX_RATE_DENOMINATOR)
            options = {"crf": _QUALITY, "preset": _SPEED}
            self._stream: Any = self._container.add_stream("libx264", rate=rate_fraction, options=options)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"

    def add(self, frame: NDArray[np.uint8]) -> None:
        self._write(self._av.VideoFrame.from_ndarray(frame, format="rgb24"))

    def close(self) -> None:
        self._write(None)
        with self._named_errors():
            self._container.close()

    def _write(self, frame: Any) -> None:
        """Encode a frame; None writes the frames that the encoder still holds."""
        with self._named_errors():
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn the errors of FFmpeg into `OSError` with the name of the file."""
        try:
            yield
        except self._av.FFmpegError as error:
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(self._path)) from error
