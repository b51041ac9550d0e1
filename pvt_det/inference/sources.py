"""Find the images and videos given on a command line, and read video frames."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np
from numpy.typing import NDArray

from pvt_det.data.images import IMAGE_SUFFIXES
from pvt_det.errors import DataError
from pvt_det.utils.paths import file_fault, folder_fault

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_DEFAULT_FRAME_RATE = 25.0  # if the video does not specify one


@dataclass(frozen=True)
class Source:
    """An image or video file.

    Attributes:
        path: Path of the file.
        name: Name of the output files for this source: a relative path without suffix, unique among all sources. The
            frames of a video are in a folder of this name, which contains nothing else.
    """

    path: Path
    name: PurePath

    @property
    def is_video(self) -> bool:
        """Whether the file has the suffix of a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def output_name(self, frame: int | None = None) -> PurePath:
        """Return the name of the output files for this image, or for a frame of this video.

        Args:
            frame: Number of the frame, from 1. None for an image.
        """
        return self.name if frame is None else self.name / f"{frame:06d}"


def find_sources(inputs: Iterable[str], named: Mapping[Path, PurePath] | None = None) -> list[Source]:
    """Find the images and videos given by files, folders and glob patterns. Each file is returned once.

    Folders are searched recursively. The result may contain files that cannot be read, such as pipes and broken links.
    Reading them raises an error.

    Args:
        inputs: Paths of files and folders, and glob patterns.
        named: Names of sources of an earlier run, which keep them.

    Raises:
        DataError: A path does not exist, or a folder or pattern contains no image or video.
    """
    found: dict[Path, Source] = {}
    named = named or {}
    names = _Names()
    for path, name in named.items():
        names.take(Source(path, name))
    for given in inputs:
        for path, name in _resolve(given):
            if path not in found:
                found[path] = Source(path, named[path]) if path in named else names.take(Source(path, name))
    return list(found.values())


def _resolve(given: str) -> list[tuple[Path, PurePath]]:
    """Return the path and the output name of every file that a path or pattern refers to."""
    if not given:
        raise DataError("'' is not a file name. Expected an image, a video, a folder (. for this one) or a pattern.")
    path = Path(given)
    if not folder_fault(path):
        known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and not file.is_dir())
        if not files:
            raise DataError(f"{path} contains no image or video. Expected files with the suffix {', '.join(known)}.")
        return [(file, file.relative_to(path).with_suffix("")) for file in files]
    fault = file_fault(path)
    if not fault:
        return [(path, PurePath(path.stem))]
    # Files with brackets in their names were handled above.
    if re.search(r"[*?\[]", given):
        # pathlib does not support absolute patterns.
        files = [Path(match) for match in sorted(glob.glob(given, recursive=True)) if not Path(match).is_dir()]  # noqa: PTH207
        if not files:
            raise DataError(f"No file matches the pattern {given}.")
        return [(file, PurePath(file.stem)) for file in files]
    raise DataError(f"{path} {fault}. Expected an image, a video, a folder or a pattern such as 'photos/*.jpg'.")


class _Names:
    """The names of all output files, in lower case, because some file systems ignore it."""

    def __init__(self) -> None:
        self._files: set[PurePath] = set()
        self._folders: set[PurePath] = set()
        self._videos: set[PurePath] = set()

    def take(self, source: Source) -> Source:
        """Return the source with a free name: its own, or else with a number after the first part, as in a_2/b."""
        first, *rest = source.name.parts
        unique, number = source, 1
        while not self._is_free(unique):
            number += 1
            unique = Source(source.path, PurePath(f"{first}_{number}", *rest))
        name = _lower(unique.name)
        self._files.add(name)
        self._folders.update(name.parents)
        if unique.is_video:
            self._videos.add(name)
        return unique

    def _is_free(self, source: Source) -> bool:
        name = _lower(source.name)
        if name in self._files or not self._videos.isdisjoint(name.parents):
            return False
        return not (source.is_video and name in self._folders)


def _lower(name: PurePath) -> PurePath:
    return PurePath(str(name).casefold())


class Video:
    """Iterates over the frames of a video, in RGB.

    Args:
        path: The video file.

    Attributes:
        frames: Number of frames according to the file header, or 0 if it is unknown.
        rate: Frames per second.

    Raises:
        DataError: The file cannot be opened, or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        if fault := file_fault(path):
            raise DataError(f"Video {path} {fault}.")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise DataError(f"Video {path} cannot be opened. It is damaged or in a format that OpenCV does not read.")
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.rate = float(self._capture.get(cv2.CAP_PROP_FPS)) or _DEFAULT_FRAME_RATE

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the `H×W×3` uint8 frames, until the end of the video or the first frame that cannot be read."""
        while True:
            read, frame = self._capture.read()
            if not read:
                self._capture.release()
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])
