"""Run a model on images, videos and streams. Those that cannot be read are reported, and a run can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Generic

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from pvt_det.data.images import read_image
from pvt_det.errors import ConfigError, DataError, Interrupted
from pvt_det.inference.files import VIDEOS_NAME, OutputFiles, Prediction
from pvt_det.inference.frames import Frame, LiveVideo, Video
from pvt_det.inference.sources import Source
from pvt_det.inference.urls import read_image_url
from pvt_det.inference.video import NO_H264, VideoFile, writes_h264
from pvt_det.utils.signals import StopRequest
from pvt_det.utils.text import counted

Pixels = NDArray[np.uint8]
# Changes the predictions for the frames of one video, in their order. The number is that of the frame in a video of
# constant rate, from 0.
Track = Callable[[Prediction, int], Prediction]

_SECONDS = 5.0  # between the lines about a video


class PredictionRun(Generic[Prediction]):
    """Runs a model on images and videos, and writes the predictions.

    A line for each image says what was found and how long the model took, and so do some lines for each video.

    Predictions are appended to the part of the output folder after every batch. At the end, the part becomes COCO json.
    A run that ends early, for any reason, can be resumed from it. A request to stop during a live stream ends the
    stream. The run is then complete, unless more sources follow.

    Args:
        predict: Returns one prediction for each of a list of images, `H×W×3` uint8 RGB.
        files: Writes the predictions.
        batch_size: Number of images or frames to read at a time, at least 1.
        progress: Progress bar, on whose console the lines and the files that cannot be read are printed.
        classes: Indices of the classes to keep. None keeps all classes.
        stride: Frames of videos to predict on: every frame (1), every second (2), and so on.
        start_tracks: Called at the start of each video and for each image, with the frames per second. It returns a
            function that follows the objects from one frame to the next. None tracks nothing.
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
        stride: int = 1,
        start_tracks: Callable[[float], Track[Prediction]] | None = None,
        resume_command: str = "the same command with --resume",
        quiet: bool = False,
    ) -> None:
        self.predict = predict
        self.files = files
        self.batch_size = batch_size
        self.progress = progress
        self.classes = classes
        self.stride = stride
        self.start_tracks = start_tracks
        self.resume_command = resume_command
        self.quiet = quiet
        self.errors: list[str] = []
        self._stop = StopRequest("batch")
        self._numbers: dict[Source, str] = {}

    def run(self, sources: Sequence[Source]) -> list[str]:
        """Run the model on all sources that are not in the part yet, and write the results.

        Args:
            sources: The images, videos and streams.

        Returns:
            An error message for each source that cannot be read completely.

        Raises:
            ConfigError: The output folder cannot be written, or the part was started with different settings.
            Interrupted: A signal such as SIGTERM requested to stop.
        """
        self._numbers = {source: f"{number}/{len(sources)}" for number, source in enumerate(sources, start=1)}
        part = self.files.part
        part.open(self.files.settings)
        for fault in part.faults:
            self._report(fault)
        if self.files.pictures and not writes_h264() and any(source.is_video for source in sources):
            self._print(f"note: {NO_H264}")
        task = self.progress.add_task("predicting", total=len(sources), completed=len(part.sources))
        try:
            with self._stop:
                self._predict_sources([source for source in sources if source.shown not in part.sources], task)
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
                batch.append((source, _read(source.path)))
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
        if self.start_tracks:
            predictions = [self.start_tracks(1.0)(prediction, 0) for prediction in predictions]
        for (source, pixels), prediction in zip(batch, predictions, strict=True):
            self.files.add(source, pixels, prediction)
            if self.files.pictures:
                self.files.save_picture(source, self.files.draw(pixels, prediction))
            found = self.files.describe(prediction)
            self._say(f"image {self._numbers[source]} {source.shown}: {found}, {milliseconds:.0f} ms")
            self.progress.advance(task)
        self.files.part.flush()

    def _predict_video(self, source: Source) -> None:
        try:
            video = self._open(source)
        except DataError as error:
            self._report(str(error))
            return
        name = f"{source.kind.value} {self._numbers[source]} {source.shown}"
        is_endless = video.frames == 0 and isinstance(source.path, str)
        drawing = VideoFile(self.files.folder / VIDEOS_NAME / f"{source.name}.mp4", video.rate, is_live=is_endless)
        task = self.progress.add_task(source.name.name, total=video.frames or None)
        with closing(video), drawing:
            count, milliseconds = self._predict_frames(source, video, drawing, name, task)
        self.progress.remove_task(task)
        if fault := video.fault():
            self._report(fault)
        else:
            ending = f" ({video.ending()})" if video.ending() else ""
            self._say(f"{name}: {counted(count, 'frame')}, {milliseconds / max(count, 1):.0f} ms per frame{ending}")
        self.files.part.end_video(source, fault)
        self.files.part.flush()

    def _open(self, source: Source) -> Video | LiveVideo:
        if source.is_live:
            return LiveVideo(str(source.path), self.stride, lambda: self._stop.signal_name is not None)
        return Video(source.path, self.stride)

    def _predict_frames(
        self, source: Source, video: Video | LiveVideo, drawing: VideoFile, name: str, task: TaskID
    ) -> tuple[int, float]:
        """Return the number of frames that were predicted on, and the milliseconds that the model took for them."""
        track = self.start_tracks(video.rate) if self.start_tracks else None
        said, count, total = -math.inf, 0, 0.0
        for frames in video.batches(self.batch_size):
            if video.frames or isinstance(source.path, Path):
                self._check_stop()
            elif self._stop.signal_name is not None:
                break  # to stop a live stream is to end it
            predictions, milliseconds = self._predict([frame.pixels for frame in frames])
            if track:
                predictions = [track(each, frame.position) for each, frame in zip(predictions, frames, strict=True)]
            for frame, prediction in zip(frames, predictions, strict=True):
                self._add_frame(source, frame, prediction, drawing)
            self.progress.update(task, completed=video.number)
            self.files.part.flush()
            count, total = count + len(frames), total + milliseconds * len(frames)
            if time.monotonic() - said > _SECONDS:
                said = time.monotonic()
                found = self.files.describe(predictions[-1])
                self._say(f"{name} frame {frames[-1].number}/{video.frames or '?'}: {found}, {milliseconds:.0f} ms")
        return count, total

    def _add_frame(self, source: Source, frame: Frame, prediction: Prediction, drawing: VideoFile) -> None:
        self.files.add(source, frame.pixels, prediction, frame.number, frame.time)
        if self.files.pictures:
            drawing.add(self.files.draw(frame.pixels, prediction, in_video=True), frame.position)

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


def _read(path: Path | str) -> Pixels:
    return read_image(path, "RGB") if isinstance(path, Path) else read_image_url(path)
