"""Export a trained detector or segmentor from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pvt_det.deployment.api import Report
from pvt_det.deployment.run import CALIBRATION_IMAGES, Int8Request, export_run
from pvt_det.errors import ConfigError
from pvt_det.functions.call import PathLike, library_call, override_words, patterns


def export(
    run: PathLike,
    output: PathLike,
    *,
    images: Sequence[PathLike] = (),
    weights: PathLike = "",
    format: Literal["onnx", "torch", "openvino"] | None = None,
    overrides: Mapping[str, Any] | None = None,
    calibrate: Sequence[PathLike] = (),
    calibrate_images: int = CALIBRATION_IMAGES,
    max_drop: float | None = None,
    public_key: PathLike = "",
) -> Report:
    """Export a trained detector or segmentor to a file that runs without this package, as `pvt-det export` does.

    The file is kept only if its outputs match those of the model.

    Args:
        run: A run folder, a config file, or the name of a recipe.
        output: File to write: `.onnx`, `.pt2` for a `torch.export` program, or a folder whose name ends in `_openvino`.
        images: Images, folders or patterns for the comparison. Empty takes the run's validation images.
        weights: Weights of the model, in any form that MODEL.WEIGHTS accepts. "" takes the run's best checkpoint.
        format: "onnx", "torch" or "openvino". None takes that of the name of `output`.
        overrides: Values by config key.
        calibrate: Calibration images, folders or patterns, with which an OpenVINO model or an ONNX file is
            quantized to int8. Empty does not quantize it.
        calibrate_images: Maximum number of calibration images, at least 1.
        max_drop: Largest accepted loss of an int8 model in percentage points of AP, mask AP, mIoU or PQ on the run's
            validation data. None does not measure it.
        public_key: PEM file with which the signature of the run is verified before anything in it is read. "" verifies
            nothing.

    Returns:
        The file, its outputs, their differences from the model's, and timings.

    Raises:
        ConfigError: An argument or a config key is wrong, or a requirement of the file format is missing.
        DataError: An image cannot be read.
        CheckpointError: The weights are missing, damaged or do not fit, or the signature does not match.
        NumericError: The file's outputs differ from the model's.
    """
    with library_call():
        files = patterns("calibrate", calibrate)
        if max_drop is not None and not files:
            raise ConfigError("max_drop is for int8. Add calibrate, or leave it out.")
        return export_run(
            os.fspath(run),
            Path(output),
            weights=os.fspath(weights),
            images=patterns("images", images),
            kind=format,
            overrides=override_words(overrides),
            int8=Int8Request(files, calibrate_images, max_drop) if files else None,
            public_key=os.fspath(public_key),
        )
