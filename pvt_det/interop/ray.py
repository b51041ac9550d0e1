"""Predict on very many images with Ray Data: `BatchPredictor` is a class for `Dataset.map_batches`, one per actor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pvt_det.data.images import decode_image
from pvt_det.errors import ConfigError, DataError
from pvt_det.evaluation.detections import as_json, pack_detections
from pvt_det.inference import SCORE_THRESHOLD
from pvt_det.inference.pixels import load_pixels
from pvt_det.inference.predictor import Predictor
from pvt_det.utils.extras import require_packages

if TYPE_CHECKING:
    import pyarrow

__all__ = ["BatchPredictor"]


class BatchPredictor:
    """Finds objects in batches of Ray Data with a trained detector. Each actor loads the model once.

    Pass the class to `ray.data.Dataset.map_batches`, and its arguments as `fn_constructor_args` and
    `fn_constructor_kwargs`. Leave `batch_format` at "numpy", its default. The result has a row for each image, with the
    columns of the input, without the images themselves, and these:

    - `height`, `width`: size of the image in pixels.
    - `detections`: list of the objects with `category_id` (class index plus 1), `bbox` (x, y, width and height in
      pixels), `score` and, for a model with masks, `segmentation` (`size` and `counts` of COCO's compressed
      run-length encoding), by descending score. They are those of `pvt-det predict`.
    - `error`: why the image cannot be read. It is then null in the other columns. Otherwise null.

    Args:
        config: A run folder, a config file, or an exported file, which all machines can read.
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects `model_best.pth`, or
            otherwise `model_final.pth`, next to the config.
        column: Column with the images: paths of files as strings, contents of files as bytes, or arrays `H×W×3`, uint8,
            RGB, which are not rotated by an EXIF orientation.
        overrides: Config keys and values, such as `["TEST.AUG.ENABLED", "True"]`.
        score_threshold: Minimum score of the detections, 0 to 1. None uses the threshold of the config, which is low
            for evaluation.
        device: Device such as "cuda" or "cpu". "" selects the GPU that Ray gives to the actor, if any.
        public_key: PEM file with which the signature of the config's folder is verified before anything in it is read.
            "" verifies nothing.

    Raises:
        CheckpointError: The weights are missing, damaged, unsafe, or do not cover the whole model, or the signature of
            the folder does not match.
        ConfigError: The config is invalid or not that of a detector, or pyarrow is not installed.
    """

    def __init__(
        self,
        config: str | os.PathLike[str],
        weights: str | os.PathLike[str] = "",
        *,
        column: str = "path",
        overrides: Sequence[str] = (),
        score_threshold: float | None = SCORE_THRESHOLD,
        device: str = "",
        public_key: str | os.PathLike[str] = "",
    ) -> None:
        self._arrow = _pyarrow()
        self.column = column
        self.predictor = Predictor(
            config,
            weights,
            overrides=overrides,
            score_threshold=score_threshold,
            device=device,
            public_key=public_key,
        )
        self._category_ids = np.arange(1, len(self.predictor.class_names) + 1)

    def __call__(self, batch: Mapping[str, Any]) -> pyarrow.Table:
        """Predict on a batch.

        Args:
            batch: NumPy arrays by column.

        Returns:
            A table with a row for each image.

        Raises:
            ConfigError: The batch has another format, or no column with images.
            NumericError: The model's outputs are NaN or infinite.
        """
        if not isinstance(batch, Mapping):
            raise ConfigError(f'batch_format: the batch is a {type(batch).__name__}. Leave batch_format at "numpy".')
        if self.column not in batch:
            raise ConfigError(
                f"column {self.column!r} does not exist. The data has {', '.join(batch)}. Name the column with the "
                'images in fn_constructor_kwargs={"column": …}.'
            )
        arrow = self._arrow
        images = list(batch[self.column])
        rows = self._rows(images)
        kept = {name: arrow.array(list(values)) for name, values in batch.items() if name != self.column}
        if images and isinstance(images[0], str):
            kept = {self.column: arrow.array(images), **kept}
        new = {name: arrow.array([row[name] for row in rows], kind) for name, kind in self._types().items()}
        return arrow.table({**kept, **new})

    def _rows(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the new columns of each image."""
        pixels: dict[int, Any] = {}
        rows: list[dict[str, Any]] = [dict.fromkeys(("height", "width", "detections", "error")) for _ in images]
        for number, image in enumerate(images):
            name = image if isinstance(image, str) else f"image {number} of the batch"
            try:
                is_file = isinstance(image, bytes)
                pixels[number] = decode_image(image, name) if is_file else load_pixels(image, name)
            except DataError as error:
                rows[number]["error"] = str(error)
        for number, found in zip(pixels, self.predictor(list(pixels.values())), strict=True):
            height, width = found.image_size
            detections = as_json(pack_detections(found, number), self._category_ids)
            rows[number] |= {"height": height, "width": width, "detections": detections}
        return rows

    def _types(self) -> dict[str, Any]:
        # Fixed, because a batch without objects would have a column without a type.
        arrow = self._arrow
        rle = arrow.struct({"size": arrow.list_(arrow.int64()), "counts": arrow.string()})
        detection = {"category_id": arrow.int64(), "bbox": arrow.list_(arrow.float64()), "score": arrow.float64()}
        if self.predictor.cfg.MODEL.MASK_ON:
            detection["segmentation"] = rle
        return {
            "height": arrow.int64(),
            "width": arrow.int64(),
            "detections": arrow.list_(arrow.struct(detection)),
            "error": arrow.string(),
        }


def _pyarrow() -> Any:
    require_packages("Prediction with Ray Data", "pyarrow", extra="ray")
    import pyarrow

    return pyarrow
