"""Find the images, videos and streams given on a command line."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from pvt_det.data.images import IMAGE_SUFFIXES
from pvt_det.errors import DataError
from pvt_det.inference.urls import VIDEO_SUFFIXES, Kind, find_kind, is_url, output_name, without_login
from pvt_det.utils.paths import file_fault, folder_fault, similar_path


@dataclass(frozen=True)
class Source:
    """An image, a video, or a live stream.

    Attributes:
        path: Path of a file, or as a string the URL, or the number of a camera.
        name: Name of the output files for this source: a relative path without suffix, unique among all sources. The
            frames of a video are in a folder of this name, which contains nothing else.
        of_kind: What a URL or camera is. For a file, None: its suffix says it.
    """

    path: Path | str
    name: PurePath
    of_kind: Kind | None = None

    @property
    def kind(self) -> Kind:
        """What the source is."""
        if self.of_kind is not None:
            return self.of_kind
        return Kind.VIDEO if Path(self.path).suffix.lower() in VIDEO_SUFFIXES else Kind.IMAGE

    @property
    def is_video(self) -> bool:
        """Whether the source has frames: a video or a live stream."""
        return self.kind is not Kind.IMAGE

    @property
    def is_live(self) -> bool:
        """Whether the source is a camera or a live stream, which has no end of its own."""
        return self.kind is Kind.LIVE

    @property
    def shown(self) -> str:
        """How messages and results name the source: its path, its URL without password, or "camera 0"."""
        if isinstance(self.path, Path):
            return str(self.path)
        return f"camera {self.path}" if self.path.isdecimal() else without_login(self.path)

    def output_name(self, frame: int | None = None) -> PurePath:
        """Return the name of the output files for this image, or for a frame of this video.

        Args:
            frame: Number of the frame, from 1. None for an image.
        """
        return self.name if frame is None else self.name / f"{frame:06d}"


def find_sources(inputs: Iterable[str], named: Mapping[str, PurePath] | None = None) -> list[Source]:
    """Find the images, videos and streams that inputs refer to. Each is returned once.

    Folders are searched recursively. The result may contain files that cannot be read, such as pipes and broken links.
    Reading them raises an error. A server is asked what a URL refers to, unless the URL says it.

    Args:
        inputs: Paths of files and folders, glob patterns, URLs, and numbers of cameras.
        named: Output names of sources of an earlier run, which keep them, by their `shown`.

    Raises:
        DataError: A path does not exist, a folder or pattern contains no image or video, or a URL cannot be used.
    """
    found: dict[str, Source] = {}
    named = named or {}
    names = _Names()
    for shown, name in named.items():
        # Any source from the network could be a video.
        names.take(Source(shown, name, Kind.VIDEO) if is_url(shown) else Source(Path(shown), name))
    for given in inputs:
        for source in _resolve(given):
            if source.shown not in found:
                is_named = source.shown in named
                found[source.shown] = replace(source, name=named[source.shown]) if is_named else names.take(source)
    return list(found.values())


def _resolve(given: str) -> list[Source]:
    """Return what an input refers to, each with the output name that it should get."""
    if is_url(given):
        return [Source(given, PurePath(output_name(given)), find_kind(given))]
    if given.isascii() and given.isdecimal() and not Path(given).exists():
        return [Source(str(int(given)), PurePath(f"camera_{int(given)}"), Kind.LIVE)]
    return [Source(path, name) for path, name in _resolve_path(given)]


def _resolve_path(given: str) -> list[tuple[Path, PurePath]]:
    """Return the path and the output name of every file that a path or pattern refers to."""
    if not given:
        raise DataError(
            "'' is not a file name. Expected an image, a video, a folder (. for this one), a pattern or a URL."
        )
    path = Path(given)
    if not folder_fault(path):
        known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
        # Path.rglob would ask a file system on the network about each file.
        found = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        files = sorted((file for file in found if file.suffix.lower() in known), key=lambda file: file.parts)
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
    raise DataError(
        f"{path} {fault}.{similar_path(path)} Expected an image, a video, a folder, a pattern such as 'photos/*.jpg', "
        "a URL or the number of a camera."
    )


class _Names:
    """The names of all output files, in lower case, because some file systems ignore it."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._videos: set[str] = set()

    def take(self, source: Source) -> Source:
        """Return the source with a free name: its own, or else with a number after the first part, as in a_2/b."""
        unique, number = source, 1
        while not self._is_free(lower := _lower(unique.name), unique.is_video):
            first, *rest = source.name.parts
            number += 1
            unique = replace(source, name=PurePath(f"{first}_{number}", *rest))
        self._files.add(lower)
        self._folders.update(_parents(lower))
        if unique.is_video:
            self._videos.add(lower)
        return unique

    def _is_free(self, name: str, is_video: bool) -> bool:
        if name in self._files or not self._videos.isdisjoint(_parents(name)):
            return False
        return not (is_video and name in self._folders)


def _lower(name: PurePath) -> str:
    return name.as_posix().casefold()


def _parents(name: str) -> list[str]:
    """Return the folders of a name: "a/b" and "a" of "a/b/c". Making a path of each would take most of the time."""
    return [name[:end] for end, character in enumerate(name) if character == "/"]
