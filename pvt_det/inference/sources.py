"""The images and videos that a command line means, and their pixels."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np
from numpy.typing import NDArray

from pvt_det.data.images import IMAGE_SUFFIXES
from pvt_det.errors import DataError
from pvt_det.utils.paths import file_fault, folder_fault

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_FRAMES_PER_SECOND = 25.0  # of a video that does not tell


@dataclass(frozen=True)
class Source:
    """One file to look at.

    Attributes:
        path: Where it is.
        name: A relative path without suffix, its own among all sources, to call by it what is written of it.
    """

    path: Path
    name: PurePath

    @property
    def is_video(self) -> bool:
        """Whether it is read as a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(words: Iterable[str]) -> list[Source]:
    """Files, the images and videos in folders and the folders below, and what glob patterns match, each once.

    Among them is what cannot be read, such as a pipe or a link that leads nowhere: reading tells.

    Raises:
        DataError: A word means no file.
    """
    found: dict[Path, Source] = {}
    names: set[PurePath] = set()
    for word in words:
        for path, name in _meant_by(word):
            if path not in found:
                own = _unlike(names, name)
                names.add(own)
                found[path] = Source(path, own)
    return list(found.values())


def _meant_by(word: str) -> list[tuple[Path, PurePath]]:
    if not word:
        raise DataError("'' is no name: expected an image, a video, a folder (. is this one) or a pattern")
    path = Path(word)
    if not folder_fault(path):
        known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and not file.is_dir())
        if not files:
            raise DataError(f"{path} and its folders hold no image or video ({', '.join(known)})")
        return [(file, file.relative_to(path).with_suffix("")) for file in files]
    fault = file_fault(path)
    if not fault:
        return [(path, PurePath(path.stem))]
    # A file whose name has brackets was found above.
    if re.search(r"[*?\[]", word):
        # Not by pathlib, whose glob takes no absolute patterns.
        files = [Path(match) for match in sorted(glob.glob(word, recursive=True)) if not Path(match).is_dir()]  # noqa: PTH207
        if not files:
            raise DataError(f"no file matches {word}")
        return [(file, PurePath(file.stem)) for file in files]
    raise DataError(f"{path} {fault}: expected an image, a video, a folder or a pattern such as 'photos/*.jpg'")


def _unlike(taken: set[PurePath], name: PurePath) -> PurePath:
    own, number = name, 1
    while own in taken:
        number += 1
        own = name.with_name(f"{name.name}_{number}")
    return own


class Video:
    """A video's frames, in RGB.

    Args:
        path: The file.

    Attributes:
        frames: How many frames its header promises; 0 where it does not tell.
        rate: Frames per second.

    Raises:
        DataError: It cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        if fault := file_fault(path):
            raise DataError(f"video {path} {fault}")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise DataError(f"video {path} cannot be opened: it is broken, or of a kind that OpenCV does not know")
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.rate = float(self._capture.get(cv2.CAP_PROP_FPS)) or _FRAMES_PER_SECOND

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Frames, `H×W×3` uint8, until the video or what can be read of it ends."""
        while True:
            read, frame = self._capture.read()
            if not read:
                self._capture.release()
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])


class VideoFile:
    """Writes a video, in MP4.

    Args:
        path: The file; its folder is made.
        rate: Frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame, `H×W×3` uint8 RGB, all of one size.

        Raises:
            DataError: The file cannot be written.
        """
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self._writer.isOpened():
                raise DataError(f"video {self.path} cannot be written")
        self._writer.write(frame[:, :, ::-1])

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()
