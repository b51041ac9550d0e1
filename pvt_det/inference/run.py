"""Run a model on images, videos and streams. Those that cannot be read are reported, and a run can be resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Generic

from rich.progress import Progress, TaskID

from pvt_det.data.workers import is_worker_death
from pvt_det.errors import ConfigError, DataError, Interrupted, PvtDetError, RankError
from pvt_det.inference.files import VIDEOS_NAME, OutputFiles, Prediction
from pvt_det.inference.frames import Frame, LiveVideo, Video
from pvt_det.inference.pixels import Prepared
from pvt_det.inference.reading import Pixels, Prepare, ReadImage, read_images
from pvt_det.inference.sources import Source
from pvt_det.inference.times import Times
from pvt_det.inference.video import NO_H264, VideoFile, writes_h264
from pvt_det.inference.writing import ResultWriter
from pvt_det.utils.signals import StopRequest
from pvt_det.utils.text import counted

# Changes the predictions for the frames of one video, in their order. The number is that of the frame in a video of
# constant rate, from 0.
Track = Callable[[Prediction, int], Prediction]

_SECONDS = 5.0  # between the lines about a video
_MANY = 10  # images, for which worker processes are started


class PredictionRun(Generic[Prediction]):
    """Runs a model on images and videos, and writes the predictions.

    A line for each image says what was found and how long the model took, and so do some lines for each video.

    Predictions are appended to the journal of the output folder after every batch. At the end, they become COCO json. A
    run that ends early, for any reason, can be resumed from the journal. A request to stop during a live stream ends
    the stream. The run is then complete, unless more sources follow.

    A batch has the images of `batch_size` successive sources, without those that cannot be read. After an interruption,
    a batch is predicted on as a whole again, because the last digits of a prediction depend on the other images.

    Args:
        predict: Returns one prediction for each of a list of images, `H×W×3` uint8 RGB or `Prepared`.
        files: Writes the predictions.
        batch_size: Number of images or frames to read at a time, at least 1.
        progress: Progress bar, on whose console the lines and the files that cannot be read are printed.
        classes: Indices of the classes to keep. None keeps all classes.
        stride: Frames of videos to predict on: every frame (1), every second (2), and so on.
        start_tracks: Called at the start of each video and for each image, with the frames per second. It returns a
            function that follows the objects from one frame to the next. None tracks nothing.
        resume_command: The command that resumes the run, shown if it ends early.
        quiet: Whether to print no line about an image or video that could be read.
        prepare: Function that `predict` would apply to the pixels of an image. It is applied where images are read, and
            `predict` is given `Prepared` images. None gives it the pixels.
        workers: Number of processes that read images, and of those that write results, while the model runs. 0, or
            fewer than 10 images, does everything in this process. The frames of videos are always read and written by
            this process.

    Attributes:
        times: What the time for images was spent on.
        errors: An error message for each source that could not be read completely.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Any]], Sequence[Prediction]],
        files: OutputFiles[Prediction],
        *,
        batch_size: int,
        progress: Progress,
        classes: Sequence[int] | None = None,
        stride: int = 1,
        start_tracks: Callable[[float], Track[Prediction]] | None = None,
        resume_command: str = "the same command with --resume",
        quiet: bool = False,
        prepare: Prepare | None = None,
        workers: int = 0,
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
        self.prepare = prepare
        self.workers = workers
        self.times = Times()
        self.errors: list[str] = []
        self._stop = StopRequest("batch")
        self._positions: dict[Source, int] = {}

    @property
    def stop_signal(self) -> str | None:
        """Name of the signal that requested to stop, such as "SIGTERM". None without one."""
        return self._stop.signal_name

    def run(self, sources: Sequence[Source]) -> list[str]:
        """Run the model on all sources that are not in the journal yet, and write the results.

        Args:
            sources: The images, videos and streams.

        Returns:
            An error message for each source that cannot be read completely.

        Raises:
            ConfigError: The output folder cannot be written, or the journal was started with different settings.
            Interrupted: A signal such as SIGTERM requested to stop.
            NumericError: The model's outputs are NaN or infinite.
            RankError: A process that reads images or writes results was killed.
        """
        self._positions = {source: position for position, source in enumerate(sources, start=1)}
        journal = self.files.journal
        journal.open(self.files.settings)
        for fault in journal.faults:
            self._report(fault)
        if self.files.pictures and not writes_h264() and any(source.is_video for source in sources):
            self._print(f"note: {NO_H264}")
        self._task = self.progress.add_task("predicting", total=len(sources), completed=len(journal.sources))
        try:
            with self._stop:
                self._predict_sources(self._unfinished(sources))
                self.files.finish()
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.files.folder} cannot be written: {error.strerror}. The predictions of "
                f"{journal.images} images are in {journal.path}. Free some space or fix the folder, and continue with: "
                f"{self.resume_command}"
            ) from error
        except RuntimeError as error:
            if not is_worker_death(error):
                raise
            raise RankError(
                "A process that reads images or writes results was killed, most often because the memory was full. "
                f"The predictions of {journal.images} images are in {journal.path}. Continue without such processes: "
                f"{self.resume_command} --set DATALOADER.NUM_WORKERS 0"
            ) from error
        finally:
            journal.close()
        return self.errors

    def _unfinished(self, sources: Sequence[Source]) -> list[Source]:
        """Return the sources of the batches that are not complete in the journal."""
        batches = [sources[start : start + self.batch_size] for start in range(0, len(sources), self.batch_size)]
        return [source for batch in batches if not all(map(self._is_done, batch)) for source in batch]

    def _is_done(self, source: Source) -> bool:
        return source.shown in self.files.journal.sources

    def _predict_sources(self, sources: Sequence[Source]) -> None:
        images = [source for source in sources if not source.is_video]
        workers = self.workers if len(images) >= _MANY else 0
        reader = read_images(images, self.prepare, workers, self.batch_size)
        with closing(reader), ResultWriter(self.files, workers) as self._writer:
            try:
                self._predict_each(sources, reader)
            except Exception:
                # Keep what is still written. If that fails too, the first error is the one to report.
                with suppress(Exception):
                    self._collect()
                raise
        if len(images) >= _MANY:
            self._print(self.times.describe(len(images)))

    def _predict_each(self, sources: Sequence[Source], reader: Generator[ReadImage | PvtDetError]) -> None:
        batch: list[tuple[Source, ReadImage]] = []
        for source in sources:
            self._check_stop()
            if source.is_video:
                self._predict_images(batch)
                batch = []
                self._collect()
                if not self._is_done(source):
                    self._predict_video(source)
                    self._advance()
                continue
            with self.times.measured("reading"):
                image = next(reader)
            if isinstance(image, ReadImage):
                batch.append((source, image))
            else:
                self._report(str(image))
                self._advance()
            if self._positions[source] % self.batch_size == 0:
                self._predict_images(batch)
                batch = []
        self._predict_images(batch)
        self._collect()

    def _predict_images(self, batch: Sequence[tuple[Source, ReadImage]]) -> None:
        if not batch:
            return
        with self.times.measured("model"):
            predictions, milliseconds = self._predict([image.given for _, image in batch])
        if self.start_tracks:
            predictions = [self.start_tracks(1.0)(prediction, 0) for prediction in predictions]
        with self.times.measured("writing"):
            for (source, image), prediction in zip(batch, predictions, strict=True):
                if not self._is_done(source):
                    self._writer.submit(source, image, prediction, milliseconds)
        self._collect(keep=max(self.batch_size, 2 * self.workers))

    def _collect(self, keep: int = 0) -> None:
        """Add the results that are written to the journal. Those of `keep` images may still wait."""
        with self.times.measured("writing"):
            for each in self._writer.finished(keep):
                self._advance()
                try:
                    written = each.written.result()
                except DataError as error:  # the file was removed or changed since it was read
                    self._report(str(error))
                    continue
                self.files.journal.add(each.source, each.size, written.detections)
                name = self._name("image", each.source)
                self._say(f"{name}: {written.description}, {each.milliseconds:.0f} ms")
            self.files.journal.flush()

    def _advance(self) -> None:
        self.progress.advance(self._task)

    def _predict_video(self, source: Source) -> None:
        try:
            video = self._open(source)
        except DataError as error:
            self._report(str(error))
            return
        name = self._name(source.kind.value, source)
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
        self.files.journal.end_video(source, fault)
        self.files.journal.flush()

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
            self.files.journal.flush()
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
            self._collect()
            journal = self.files.journal
            raise Interrupted(
                f"by {self._stop.signal_name}; the predictions of {journal.images} images are in {journal.path}. "
                f"Resume with: {self.resume_command}"
            )

    def _predict(self, images: Sequence[Pixels | Prepared]) -> tuple[Sequence[Prediction], float]:
        """Return the predictions, and the milliseconds that they took per image."""
        start = time.perf_counter()
        predictions = self.predict(images)
        milliseconds = (time.perf_counter() - start) * 1000 / len(images)
        if self.classes is not None:
            predictions = [self.files.keep_classes(prediction, self.classes) for prediction in predictions]
        return predictions, milliseconds

    def _name(self, kind: str, source: Source) -> str:
        return f"{kind} {self._positions[source]}/{len(self._positions)} {source.shown}"

    def _report(self, error: str) -> None:
        self.errors.append(error)
        self._print(f"skipped: {error}")

    def _say(self, line: str) -> None:
        if not self.quiet:
            self._print(line)

    def _print(self, line: str) -> None:
        # Above the progress bar, if there is one.
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
