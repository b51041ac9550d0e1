"""Read the frames of videos, cameras and live streams."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pvt_det.errors import DataError
from pvt_det.inference.urls import without_login
from pvt_det.utils.paths import file_fault
from pvt_det.utils.text import counted

# Seconds without a frame after which a connection counts as lost.
STALL_LIMIT = 10.0
_DEFAULT_FRAME_RATE = 25.0  # if a video does not specify one
_HIGHEST_LIVE_RATE = 240.0  # some cameras state the rate of their clock
# Frames of a live stream that wait for the model. More would not help a model that is too slow.
_WAITING = 16
_POLL = 0.2  # seconds between checks for a request to stop


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        number: Its number among all frames of the video, from 1.
        time: Seconds since the first frame.
        position: Its number among the frames of a drawn video with a constant rate, from 0. It leaves room for frames
            that were not read.
        pixels: `H×W×3` uint8 RGB image.
    """

    number: int
    time: float
    position: int
    pixels: NDArray[np.uint8]


class Video:
    """Reads the frames of a video with an end: a file, or a URL of one.

    Iterating over it yields the pixels of the frames, `H×W×3` uint8 RGB, until the end of the video or the first frame
    that cannot be read.

    Args:
        path: The video file, or its URL.
        stride: Read every frame (1), every second (2), and so on.

    Attributes:
        frames: Number of frames according to the file header, without regard to the stride. 0 if it is unknown.
        rate: Frames per second, of those that are read.
        number: Number of the last frame that was read or left out, from 1. 0 before the first.

    Raises:
        DataError: The video cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path | str, stride: int = 1) -> None:
        self._shown = without_login(path) if isinstance(path, str) else str(path)
        if isinstance(path, Path) and (fault := file_fault(path)):
            raise DataError(f"Video {path} {fault}.")
        self._is_file = isinstance(path, Path)
        self._capture = _open(path)
        if not self._capture.isOpened():
            hint = "" if self._is_file else ", or the server does not answer"
            raise DataError(
                f"Video {self._shown} cannot be opened. It is damaged or in a format that OpenCV does not read{hint}."
            )
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._source_rate = float(self._capture.get(cv2.CAP_PROP_FPS)) or _DEFAULT_FRAME_RATE
        self.rate = self._source_rate / stride
        self.number = 0
        self._stride = stride

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (frame.pixels for frame in self._read())

    def batches(self, size: int) -> Iterator[list[Frame]]:
        """Yield the frames in lists.

        Args:
            size: Maximum number of frames in a list, at least 1.
        """
        frames = self._read()
        return iter(lambda: list(islice(frames, size)), [])

    def fault(self) -> str:
        """Return an error message if the video ended too early, after it was read; otherwise ""."""
        if self.number >= max(self.frames, 1):
            return ""
        why = "is damaged" if self._is_file else f"ended early, or sent nothing for {STALL_LIMIT:g} seconds"
        return f"Video {self._shown} {why}. Only the first {self.number} of {self.frames} frames are used."

    def ending(self) -> str:
        """Return a phrase about the end of the video; "" if there is nothing to say."""
        return ""

    def close(self) -> None:
        """Close the video."""
        self._capture.release()

    def _read(self) -> Iterator[Frame]:
        while self._capture.grab():
            index, self.number = self.number, self.number + 1
            if index % self._stride:
                continue
            is_read, frame = self._capture.retrieve()
            if not is_read:
                self.number = index
                break
            seconds = index / self._source_rate
            yield Frame(index + 1, seconds, index // self._stride, np.ascontiguousarray(frame[:, :, ::-1]))
        self.close()


class LiveVideo:
    """Reads the frames of a camera or live stream as they come.

    A thread reads all frames, so that the connection does not fall behind. If the model is slower, frames are left out.
    It reads until the stream ends, sends nothing for 10 seconds, or the run is stopped. It does not reconnect.

    Args:
        path: A URL, or the number of a camera such as "0".
        stride: Read every frame (1), every second (2), and so on.
        stopped: Returns whether the run was asked to stop.

    Attributes:
        frames: 0, because the number of frames is unknown.
        rate: Frames per second, of those that are read, as the stream states it.
        number: Number of the last frame that was returned, from 1. 0 before the first.

    Raises:
        DataError: The camera or stream cannot be opened.
    """

    def __init__(self, path: str, stride: int = 1, stopped: Callable[[], bool] = lambda: False) -> None:
        is_camera = path.isdecimal()
        self._shown = f"Camera {path}" if is_camera else f"Stream {without_login(path)}"
        self._capture = cv2.VideoCapture(int(path)) if is_camera else _open(path)
        if not self._capture.isOpened():
            hint = (
                "Check that it is connected and that no other program uses it."
                if is_camera
                else "Check the URL, user name and password, and that a video player can show it."
            )
            raise DataError(f"{self._shown} cannot be opened. {hint}")
        self.frames = 0
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = (rate if 0 < rate <= _HIGHEST_LIVE_RATE else _DEFAULT_FRAME_RATE) / stride
        self.number = 0
        self._stride = stride
        self._stopped = stopped
        self._left_out = 0
        self._stalled = self._ended = self._closed = False
        self._frames: deque[Frame] = deque(maxlen=_WAITING)
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def batches(self, size: int) -> Iterator[list[Frame]]:
        """Yield the frames in lists, each with those that have come by then.

        Args:
            size: Maximum number of frames in a list, at least 1.
        """
        while not self._stopped():
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self._ended, timeout=_POLL)
                batch = [self._frames.popleft() for _ in range(min(size, len(self._frames)))]
                is_over = self._ended
            if batch:
                self.number = batch[-1].number
                yield batch
            elif is_over:
                return

    def fault(self) -> str:
        """Return an error message if the stream broke off, after it was read; otherwise ""."""
        if self._stalled:
            used = f"The {counted(self.number, 'frame')} until then are used. Start again to reconnect"
            return f"{self._shown} sent nothing for {STALL_LIMIT:g} seconds. {used}."
        return "" if self.number or not self._ended else f"{self._shown} ended before its first frame."

    def ending(self) -> str:
        """Return a phrase about the end of the stream."""
        left_out = ""
        if self._left_out:
            left_out = f", {counted(self._left_out, 'frame')} left out because they came faster than the model"
        return ("ended by the sender" if self._ended else "stopped") + left_out

    def close(self) -> None:
        """Close the stream."""
        self._closed = True

    def _read(self) -> None:
        """Read frames until the end. This runs in a thread."""
        started, position, index = 0.0, -1, 0
        last = time.monotonic()
        while not self._closed and self._capture.grab():
            last = time.monotonic()
            started = started or last
            if index % self._stride == 0:
                is_read, frame = self._capture.retrieve()
                if not is_read:
                    break
                position = max(position + 1, round((last - started) * self.rate))
                self._add(Frame(index + 1, last - started, position, np.ascontiguousarray(frame[:, :, ::-1])))
            index += 1
        self._capture.release()
        with self._changed:
            # FFmpeg and the drivers of cameras give up after about the limit.
            self._stalled = time.monotonic() - last > 0.9 * STALL_LIMIT
            self._ended = True
            self._changed.notify()

    def _add(self, frame: Frame) -> None:
        with self._changed:
            self._left_out += len(self._frames) == _WAITING
            self._frames.append(frame)
            self._changed.notify()


def _open(path: Path | str) -> cv2.VideoCapture:
    if isinstance(path, Path):
        return cv2.VideoCapture(str(path))
    limit = int(STALL_LIMIT * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
    return cv2.VideoCapture(path, cv2.CAP_FFMPEG, limits)
