"""A model over many files, with what is broken named and passed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from pvt_det.data.images import read_image
from pvt_det.errors import DataError
from pvt_det.inference.files import Found, OutputFiles
from pvt_det.inference.sources import Source, Video, VideoFile

Pixels = NDArray[np.uint8]


class PredictionRun(Generic[Found]):
    """Takes sources through a model and writes what it finds.

    Args:
        find: Gives what is in each of a list of images, `H×W×3` uint8 RGB.
        files: Where it goes.
        batch_size: Images or frames that are read at a time.
        progress: Shows how far it is and what is broken.
        classes: Numbers of the classes to keep; None keeps all.
    """

    def __init__(
        self,
        find: Callable[[Sequence[Pixels]], list[Found]],
        files: OutputFiles[Found],
        *,
        batch_size: int,
        progress: Progress,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.find = find
        self.files = files
        self.batch_size = batch_size
        self.progress = progress
        self.classes = classes
        self.faults: list[str] = []

    def run(self, sources: Sequence[Source]) -> list[str]:
        """Look at all sources and write the results; gives what was wrong with those that could not be read."""
        task = self.progress.add_task("files", total=len(sources))
        waiting: list[tuple[Source, Pixels]] = []
        for source in sources:
            if source.is_video:
                self._video(source)
                self.progress.advance(task)
                continue
            try:
                waiting.append((source, read_image(source.path, "RGB")))
            except DataError as error:
                self._report(str(error))
                self.progress.advance(task)
            if len(waiting) == self.batch_size:
                self._images(waiting, task)
                waiting = []
        self._images(waiting, task)
        self.files.finish()
        return self.faults

    def _images(self, batch: Sequence[tuple[Source, Pixels]], task: TaskID) -> None:
        for (source, pixels), found in zip(batch, self._find([pixels for _, pixels in batch]), strict=True):
            self.files.add(source.path, source.name, pixels, found)
            if self.files.pictures:
                self.files.save_picture(source.name, self.files.draw(pixels, found))
            self.progress.advance(task)

    def _video(self, source: Source) -> None:
        try:
            video = Video(source.path)
        except DataError as error:
            self._report(str(error))
            return
        output = VideoFile(self.files.folder / "videos" / f"{source.name}.mp4", video.rate)
        task = self.progress.add_task(source.path.name, total=video.frames or None)
        number, stream = 0, iter(video)
        for frames in iter(lambda: list(islice(stream, self.batch_size)), []):
            for frame, found in zip(frames, self._find(frames), strict=True):
                number += 1
                self.files.add(source.path, source.name / f"{number:06d}", frame, found, frame=number)
                if self.files.pictures:
                    output.add(self.files.draw(frame, found))
                self.progress.advance(task)
        output.close()
        self.progress.remove_task(task)
        if number < video.frames or number == 0:
            self._report(f"video {source.path} can be read up to frame {number} of {video.frames} only")

    def _find(self, images: Sequence[Pixels]) -> list[Found]:
        found = self.find(images)
        if self.classes is None:
            return found
        return [self.files.only(one, self.classes) for one in found]

    def _report(self, fault: str) -> None:
        self.faults.append(fault)
        self.progress.console.print(f"left out: {fault}", markup=False, highlight=False, soft_wrap=True)
