"""Run a model on many files. Files that cannot be read are reported and skipped, and a run can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from pvt_det.data.images import read_image
from pvt_det.errors import ConfigError, DataError, Interrupted
from pvt_det.inference.files import OutputFiles, Prediction
from pvt_det.inference.sources import Source, Video, VideoFile
from pvt_det.utils.signals import StopRequest

Pixels = NDArray[np.uint8]


class PredictionRun(Generic[Prediction]):
    """Runs a model on images and videos, and writes the predictions.

    Predictions are appended to the part of the output folder after every batch. At the end, the part becomes COCO json.
    A run that ends early, for any reason, can be resumed from it.

    Args:
        predict: Returns one prediction for each of a list of images, `H×W×3` uint8 RGB.
        files: Writes the predictions.
        batch_size: Number of images or frames to read at a time, at least 1.
        progress: Progress bar, on whose console files that cannot be read are reported.
        classes: Indices of the classes to keep. None keeps all classes.
        resume_command: The command that resumes the run, shown if it ends early.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Pixels]], list[Prediction]],
        files: OutputFiles[Prediction],
        *,
        batch_size: int,
        progress: Progress,
        classes: Sequence[int] | None = None,
        resume_command: str = "the same command with --resume",
    ) -> None:
        self.predict = predict
        self.files = files
        self.batch_size = batch_size
        self.progress = progress
        self.classes = classes
        self.resume_command = resume_command
        self.errors: list[str] = []
        self._stop = StopRequest("batch")

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
        part = self.files.part
        part.open(self.files.settings)
        for fault in part.faults:
            self._report(fault)
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
        for (source, pixels), prediction in zip(batch, self._predict([pixels for _, pixels in batch]), strict=True):
            self.files.add(source, pixels, prediction)
            if self.files.pictures:
                self.files.save_picture(source, self.files.draw(pixels, prediction))
            self.progress.advance(task)
        self.files.part.flush()

    def _predict_video(self, source: Source) -> None:
        try:
            video = Video(source.path)
        except DataError as error:
            self._report(str(error))
            return
        output = VideoFile(self.files.folder / "videos" / f"{source.name}.mp4", video.rate)
        task = self.progress.add_task(source.path.name, total=video.frames or None)
        number, stream = 0, iter(video)
        for frames in iter(lambda: list(islice(stream, self.batch_size)), []):
            self._check_stop()
            for frame, prediction in zip(frames, self._predict(frames), strict=True):
                number += 1
                self.files.add(source, frame, prediction, number)
                if self.files.pictures:
                    output.add(self.files.draw(frame, prediction))
                self.progress.advance(task)
            self.files.part.flush()
        output.close()
        self.progress.remove_task(task)
        fault = ""
        if number < video.frames or number == 0:
            fault = f"Video {source.path} is damaged. Only the first {number} of {video.frames} frames are used."
            self._report(fault)
        self.files.part.end_video(source, fault)
        self.files.part.flush()

    def _check_stop(self) -> None:
        if self._stop.signal_name is not None:
            part = self.files.part
            raise Interrupted(
                f"by {self._stop.signal_name}; the predictions of {part.images} images are in {part.path}. "
                f"Resume with: {self.resume_command}"
            )

    def _predict(self, images: Sequence[Pixels]) -> list[Prediction]:
        predictions = self.predict(images)
        if self.classes is None:
            return predictions
        return [self.files.keep_classes(prediction, self.classes) for prediction in predictions]

    def _report(self, error: str) -> None:
        self.errors.append(error)
        self.progress.console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)
