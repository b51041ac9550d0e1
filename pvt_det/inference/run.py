"""Run a model on many files. Files that cannot be read are reported and skipped, and a run can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Generic

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from pvt_det.data.images import read_image
from pvt_det.errors import ConfigError, DataError, Interrupted
from pvt_det.inference.files import VIDEOS_NAME, OutputFiles, Prediction
from pvt_det.inference.sources import Source, Video
from pvt_det.inference.video import NO_H264, VideoFile, writes_h264
from pvt_det.utils.signals import StopRequest
from pvt_det.utils.text import counted

Pixels = NDArray[np.uint8]

_SECONDS = 5.0  # between the lines about a video


class PredictionRun(Generic[Prediction]):
    """Runs a model on images and videos, and writes the predictions.

    A line for each image says what was found and how long the model took, and so do some lines for each video.

    Predictions are appended to the part of the output folder after every batch. At the end, the part becomes COCO json.
    A run that ends early, for any reason, can be resumed from it.

    Args:
        predict: Returns one prediction for each of a list of images, `H×W×3` uint8 RGB.
        files: Writes the predictions.
        batch_size: Number of images or frames to read at a time, at least 1.
        progress: Progress bar, on whose console the lines and the files that cannot be read are printed.
        classes: Indices of the classes to keep. None keeps all classes.
        resume_command: The command that resumes the run, shown if it ends early.
        quiet: Whether to print no line about an image or video that could be read.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Pixels]], Sequence[Prediction]],
        files: OutputFiles[Prediction],
        *,
        batch_size: int,
        progress: Progress,
        classes: Sequence[int] | None = None,
        resume_command: str = "the same command with --resume",
        quiet: bool = False,
    ) -> None:
        self.predict = predict
        self.files = files
        self.batch_size = batch_size
        self.progress = progress
        self.classes = classes
        self.resume_command = resume_command
        self.quiet = quiet
        self.errors: list[str] = []
        self._stop = StopRequest("batch")
        self._numbers: dict[Path, str] = {}

    def run(self, sources: Sequence[Source]) -> list[str]:
        """Run the model on all sources that are not in the part yet, and write the results.

        Args:
            sources: The images and videos.

        Returns:
            An error message for each source that cannot be read completely.

        Raises:
            ConfigError: The output folder cannot be written, or the part was started with different settings.
            Interrupted: A signal such as SIGTERM requested to stop.
        """
        self._numbers = {source.path: f"{number}/{len(sources)}" for number, source in enumerate(sources, start=1)}
        part = self.files.part
        part.open(self.files.settings)
        for fault in part.faults:
            self._report(fault)
        if self.files.pictures and not writes_h264() and any(source.is_video for source in sources):
            self._print(f"note: {NO_H264}")
        task = self.progress.add_task("predicting", total=len(sources), completed=len(part.sources))
        try:
            with self._stop:
                self._predict_sources([source for source in sources if source.path not in part.sources], task)
                self.files.finish()
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.files.folder} cannot be written: {error.strerror}. The predictions of "
                f"{part.images} images are in {part.path}. Free some space or fix the folder, and continue with: "
                f"{self.resume_command}"
            ) from error
        finally:
            part.close()
        return self.errors

    def _predict_sources(self, sources: Sequence[Source], task: TaskID) -> None:
        batch: list[tuple[Source, Pixels]] = []
        for source in sources:
            self._check_stop()
            if source.is_video:
                self._predict_images(batch, task)
                batch = []
                self._predict_video(source)
                self.progress.advance(task)
                continue
            try:
                batch.append((source, read_image(source.path, "RGB")))
            except DataError as error:
                self._report(str(error))
                self.progress.advance(task)
            if len(batch) == self.batch_size:
                self._predict_images(batch, task)
                batch = []
        self._predict_images(batch, task)

    def _predict_images(self, batch: Sequence[tuple[Source, Pixels]], task: TaskID) -> None:
        if not batch:
            return
        predictions, milliseconds = self._predict([pixels for _, pixels in batch])
        for (source, pixels), prediction in zip(batch, predictions, strict=True):
            self.files.add(source, pixels, prediction)
            if self.files.pictures:
                self.files.save_picture(source, self.files.draw(pixels, prediction))
            found = self.files.describe(prediction)
            self._say(f"image {self._numbers[source.path]} {source.path}: {found}, {milliseconds:.0f} ms")
            self.progress.advance(task)
        self.files.part.flush()

    def _predict_video(self, source: Source) -> None:
        try:
            video = Video(source.path)
        except DataError as error:
            self._report(str(error))
            return
        name = f"video {self._numbers[source.path]} {source.path}"
        output = VideoFile(self.files.folder / VIDEOS_NAME / f"{source.name}.mp4", video.rate)
        task = self.progress.add_task(source.path.name, total=video.frames or None)
        number, stream = 0, iter(video)
        said, total = -math.inf, 0.0
        for frames in iter(lambda: list(islice(stream, self.batch_size)), []):
            self._check_stop()
            predictions, milliseconds = self._predict(frames)
            for frame, prediction in zip(frames, predictions, strict=True):
                number += 1
                self.files.add(source, frame, prediction, number)
                if self.files.pictures:
                    output.add(self.files.draw(frame, prediction, in_video=True))
                self.progress.advance(task)
            self.files.part.flush()
            total += milliseconds * len(frames)
            if time.monotonic() - said > _SECONDS:
                said = time.monotonic()
                found = self.files.describe(predictions[-1])
                self._say(f"{name} frame {number}/{video.frames or '?'}: {found}, {milliseconds:.0f} ms")
        output.close()
        self.progress.remove_task(task)
        fault = ""
        if number < video.frames or number == 0:
            fault = f"Video {source.path} is damaged. Only the first {number} of {video.frames} frames are used."
            self._report(fault)
        else:
            self._say(f"{name}: {counted(number, 'frame')}, {total / number:.0f} ms per frame")
        self.files.part.end_video(source, fault)
        self.files.part.flush()

    def _check_stop(self) -> None:
        if self._stop.signal_name is not None:
            part = self.files.part
            raise Interrupted(
                f"by {self._stop.signal_name}; the predictions of {part.images} images are in {part.path}. "
                f"Resume with: {self.resume_command}"
            )

    def _predict(self, images: Sequence[Pixels]) -> tuple[Sequence[Prediction], float]:
        """Return the predictions, and the milliseconds that they took per image."""
        start = time.perf_counter()
        predictions = self.predict(images)
        milliseconds = (time.perf_counter() - start) * 1000 / len(images)
        if self.classes is not None:
            predictions = [self.files.keep_classes(prediction, self.classes) for prediction in predictions]
        return predictions, milliseconds

    def _report(self, error: str) -> None:
        self.errors.append(error)
        self._print(f"skipped: {error}")

    def _say(self, line: str) -> None:
        if not self.quiet:
            self._print(line)

    def _print(self, line: str) -> None:
        # Above the progress bar, if there is one.
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
