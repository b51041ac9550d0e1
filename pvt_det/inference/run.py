"""Run a model on many files. Files that cannot be read are reported and skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from pvt_det.data.images import read_image
from pvt_det.errors import DataError
from pvt_det.inference.files import OutputFiles, Prediction
from pvt_det.inference.sources import Source, Video, VideoFile

Pixels = NDArray[np.uint8]


class PredictionRun(Generic[Prediction]):
    """Runs a model on images and videos, and writes the predictions.

    Args:
        predict: Returns one prediction for each of a list of images, `H×W×3` uint8 RGB.
        files: Writes the predictions.
        batch_size: Number of images or frames to read at a time, at least 1.
        progress: Progress bar, on whose console files that cannot be read are reported.
        classes: Indices of the classes to keep. None keeps all classes.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[Pixels]], list[Prediction]],
        files: OutputFiles[Prediction],
        *,
        batch_size: int,
        progress: Progress,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.predict = predict
        self.files = files
        self.batch_size = batch_size
        self.progress = progress
        self.classes = classes
        self.errors: list[str] = []

    def run(self, sources: Sequence[Source]) -> list[str]:
        """Run the model on all sources and write the results.

        Args:
            sources: The images and videos.

        Returns:
            An error message for each source that cannot be read completely.
        """
        task = self.progress.add_task("files", total=len(sources))
        batch: list[tuple[Source, Pixels]] = []
        for source in sources:
            if source.is_video:
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
        self.files.finish()
        return self.errors

    def _predict_images(self, batch: Sequence[tuple[Source, Pixels]], task: TaskID) -> None:
        for (source, pixels), prediction in zip(batch, self._predict([pixels for _, pixels in batch]), strict=True):
            self.files.add(source.path, source.name, pixels, prediction)
            if self.files.pictures:
                self.files.save_picture(source.name, self.files.draw(pixels, prediction))
            self.progress.advance(task)

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
            for frame, prediction in zip(frames, self._predict(frames), strict=True):
                number += 1
                self.files.add(source.path, source.name / f"{number:06d}", frame, prediction, frame=number)
                if self.files.pictures:
                    output.add(self.files.draw(frame, prediction))
                self.progress.advance(task)
        output.close()
        self.progress.remove_task(task)
        if number < video.frames or number == 0:
            self._report(f"Video {source.path} is damaged. Only the first {number} of {video.frames} frames are used.")

    def _predict(self, images: Sequence[Pixels]) -> list[Prediction]:
        predictions = self.predict(images)
        if self.classes is None:
            return predictions
        return [self.files.keep_classes(prediction, self.classes) for prediction in predictions]

    def _report(self, error: str) -> None:
        self.errors.append(error)
        self.progress.console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)
