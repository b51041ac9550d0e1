"""The journal: the predictions of a run that is not finished yet, in one file that grows with every batch.

Memory does not grow with the number of images, and a run that is stopped or killed at any moment can be resumed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from pvt_det.errors import ConfigError, DataError
from pvt_det.inference.sources import Source

JOURNAL_NAME = "predictions.part.jsonl"
_VERSION = 1


class Journal:
    """The file `predictions.part.jsonl` of a prediction folder.

    Its first line has the settings of the run. Each further line describes an image or a frame of a video, with its
    detections. A line without `height` follows the last frame of a video. The frames of a video count only if it does,
    because a video file cannot be continued.

    Args:
        folder: The prediction folder.

    Attributes:
        path: Path of the file. It may not exist.
        sources: Names of the output files of an earlier run's finished sources, by `Source.shown`.
        faults: Error messages about these sources.
        images: Number of written images and frames, including those of an earlier run.
        objects: Number of detections in them.

    Raises:
        DataError: The file was not written by this version of the package.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_NAME
        self.sources: dict[str, PurePath] = {}
        self.faults: list[str] = []
        self.images = self.objects = 0
        self._settings: dict[str, Any] | None = None
        self._end = 0
        self._file: BinaryIO | None = None
        self._lines: list[bytes] = []
        # Number of detections of each image that is not written yet.
        self._pending: list[int] = []
        if self.path.exists():
            self._read()

    def open(self, settings: dict[str, Any]) -> None:
        """Open the file for adding images. An incomplete line or video at its end is removed.

        Args:
            settings: What the predictions depend on, as JSON values. An earlier run must have had the same.

        Raises:
            ConfigError: The settings differ from those of the earlier run.
        """
        settings = json.loads(json.dumps(settings))
        if self.sources:
            assert self._settings is not None
            changed = [name for name in settings if settings[name] != self._settings.get(name)]
            if changed:
                raise ConfigError(
                    f"{self.path} was started with a different {' and '.join(changed)}. Resume with the options that "
                    "it was started with, or choose another folder with --output."
                )
            self._file = self.path.open("r+b", buffering=0)
            self._file.truncate(self._end)
            self._file.seek(self._end)
        else:
            self._file = self.path.open("wb", buffering=0)
            self._add({"version": _VERSION, "settings": settings})
            self.flush()

    @property
    def added(self) -> int:
        """Number of images and frames, including those that are not written yet."""
        return self.images + len(self._pending)

    def add(
        self,
        source: Source,
        size: tuple[int, int],
        detections: Sequence[dict[str, Any]] = (),
        frame: int | None = None,
        time: float = 0.0,
    ) -> None:
        """Add an image or frame. It is written by the next `flush`.

        Args:
            source: The image, or the video of the frame.
            size: Height and width of the image in pixels.
            detections: The detections in COCO's results format, without `image_id`.
            frame: Number of the frame in its video, from 1. None for an image.
            time: Seconds from the first frame of the video to this one.
        """
        self._pending.append(len(detections))
        height, width = size
        record = {"file_name": source.shown, "name": source.output_name(frame).as_posix()}
        number = {} if frame is None else {"frame": frame, "time": round(time, 3)}
        self._add({**record, "height": height, "width": width, **number, "detections": list(detections)})

    def end_video(self, source: Source, fault: str = "") -> None:
        """Add the end of a video. It is written by the next `flush`.

        Args:
            source: The video.
            fault: Error message if the video could not be read completely.
        """
        self._add({"file_name": source.shown, "name": source.name.as_posix(), "fault": fault})

    def flush(self) -> None:
        """Write what was added.

        Raises:
            OSError: The file cannot be written. What earlier calls wrote stays valid.
        """
        assert self._file is not None
        # Unbuffered, because after a full disk Python would write a buffer again when it closes the file.
        content = memoryview(b"".join(self._lines))
        self._lines = []
        while content:
            content = content[self._file.write(content) :]
        self.images, self.objects = self.added, self.objects + sum(self._pending)
        self._pending = []

    def images_so_far(self) -> Iterator[dict[str, Any]]:
        """Yield the written images and frames, as they were added."""
        for _, record in self._records():
            if "height" in record:
                yield record

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Close and delete the file, after its content was written elsewhere."""
        self.close()
        self.path.unlink()

    def _add(self, record: dict[str, Any]) -> None:
        # File names that are not Unicode have unpaired surrogates, which JSON decodes from their escapes.
        text = json.dumps(record, ensure_ascii=False) + "\n"
        self._lines.append(text.encode("utf-8", errors="backslashreplace"))

    def _read(self) -> None:
        """Find the finished sources and where they end."""
        images = objects = 0
        for end, record in self._records():
            if self._settings is None:
                self._settings = self._check_header(record)
                continue
            if "height" in record:
                images, objects = images + 1, objects + len(record.get("detections", ()))
            if "frame" not in record:
                self.sources[record["file_name"]] = PurePath(record["name"])
                self.faults += filter(None, [record.get("fault")])
                self._end, self.images, self.objects = end, images, objects

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each complete line with the position of its end."""
        with self.path.open("rb") as file:
            end = 0
            for line in file:
                end += len(line)
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    record = None
                if not isinstance(record, dict) or not (record.keys() >= {"file_name", "name"} or "version" in record):
                    return  # the last line of a run that was killed, or after a power failure
                yield end, record

    def _check_header(self, record: dict[str, Any]) -> dict[str, Any]:
        if record.get("version") != _VERSION or not isinstance(record.get("settings"), dict):
            raise DataError(
                f"{self.path} was written by another version of pvt_det. Delete it to start again, or choose another "
                "folder with --output."
            )
        return record["settings"]
