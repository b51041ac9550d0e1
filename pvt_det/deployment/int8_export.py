"""Export an int8 model, measure what it costs, and keep it only if that is acceptable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray

from pvt_det.data.storage.references import Reference
from pvt_det.deployment.accuracy import Validation, largest_drop
from pvt_det.deployment.differences import differences
from pvt_det.deployment.files import remove
from pvt_det.deployment.int8 import AccuracyControl, quantize
from pvt_det.errors import NumericError
from pvt_det.runtimes.backend import Function
from pvt_det.runtimes.backends import backend_of, find_exported
from pvt_det.runtimes.metadata import Metadata, load_model_config, read_metadata
from pvt_det.runtimes.model import ExportedModel
from pvt_det.runtimes.openvino_folder import OpenVINOBackend, fastest_precision
from pvt_det.utils.text import counted

# Number of calibration images on which the two models are compared.
_COMPARED = 20


@dataclass(frozen=True)
class Int8Options:
    """How to quantize a model.

    Attributes:
        images: Image files for calibration.
        max_drop: Largest accepted loss in percentage points of AP, mask AP, mIoU or PQ on the validation data. None
            does not measure it.
    """

    images: tuple[Reference, ...]
    max_drop: float | None = None


@dataclass(frozen=True)
class Int8Report:
    """What quantization has changed.

    Attributes:
        images: Number of calibration images.
        compared: Number of images of `rows`.
        rows: Table of the differences from the fp32 model, from `pvt_det.deployment.differences`.
        before: Metrics of the fp32 model in percent by name; empty if they were not measured.
        after: Metrics of the int8 model.
        precision: Number format of what is not int8, "fp32" or "bf16"; "" if it was not measured.
        is_controlled: Whether NNCF searched for operators to keep in floating point, to reach `max_drop`.
    """

    images: int
    compared: int
    rows: list[dict[str, Any]]
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    precision: str = ""
    is_controlled: bool = False


def write_int8(
    source: Path,
    target: Path,
    images: Sequence[NDArray[np.uint8]],
    metadata: Metadata,
    *,
    max_drop: float | None,
    validation: Validation | None,
    show: Callable[[str], object],
) -> Int8Report:
    """Quantize an exported model and measure the difference.

    Args:
        source: The model in fp32: the folder of an OpenVINO model, or an ONNX file.
        target: Folder or file to write, of the same format. It does not exist.
        images: Calibration images `3×H×W`, RGB, uint8, in the model's image size.
        metadata: Metadata of the new model.
        max_drop: Largest accepted loss in percentage points. None accepts any.
        validation: Data to measure the loss on. Needed with `max_drop`.
        show: Called with the name of each step before it begins.

    Raises:
        NumericError: The model cannot be quantized, or its accuracy falls by more than `max_drop`.
    """
    entries = metadata.entries()
    show(f"Calibrating on {counted(len(images), 'image')} …")
    quantize(source, target, images, entries)
    if max_drop is None or validation is None:
        return Int8Report(len(images), *_compare(source, target, images, metadata, int8_precision(target)))
    show("Measuring the fp32 model …")
    before = validation.metrics(_model(validation.cfg, source))
    show("Measuring the int8 model …")
    after, precision = _measure(target, validation, before, max_drop)
    is_controlled = largest_drop(before, after) > max_drop
    if is_controlled:
        show(f"{_change(before, after)}: searching for the operators that must stay in floating point …")
        remove(target)
        quantize(source, target, images, entries, _accuracy_control(source, validation, max_drop))
        after, precision = _measure(target, validation, before, max_drop)
        if largest_drop(before, after) > max_drop:
            raise NumericError(
                f"The int8 model loses more than --max-drop {max_drop:g} ({_change(before, after)}). It was not kept. "
                "Add calibration images, accept a larger drop, or export without --int8."
            )
    if precision != int8_precision(target):
        # Only OpenVINO has another precision. The metadata of the source says fp32.
        OpenVINOBackend().write_metadata(target, read_metadata(_file(source)).entries())
    difference = _compare(source, target, images, metadata, precision)
    return Int8Report(len(images), *difference, before, after, precision, is_controlled)


def _measure(
    target: Path, validation: Validation, before: dict[str, float], max_drop: float
) -> tuple[dict[str, float], str]:
    """Return the metrics of an int8 model and the precision of what is not int8: fp32 if the fastest loses too much."""
    after: dict[str, float] = {}
    for precision in dict.fromkeys((int8_precision(target), "fp32")):
        after = validation.metrics(_model(validation.cfg, target, precision))
        if largest_drop(before, after) <= max_drop:
            break
    return after, precision


def _accuracy_control(source: Path, validation: Validation, max_drop: float) -> AccuracyControl:
    """Return how NNCF, which computes in fp32, searches for a model that loses at most `max_drop` of any metric."""
    model = _model(validation.cfg, source)
    # By the indices of the images. NNCF measures each image alone, some of them, and all.
    exact: dict[tuple[int, ...], dict[str, float]] = {}

    def measure(function: Function, indices: Sequence[int]) -> float:
        chosen = tuple(indices)
        if chosen not in exact:
            exact[chosen] = validation.metrics(model, chosen)
        return 100.0 - largest_drop(exact[chosen], validation.metrics(model.with_function(function), chosen))

    return AccuracyControl(measure, len(validation), max_drop)


def int8_precision(path: Path) -> str:
    """Return the number format of what is not int8 in a model: the fastest one of its runtime on this processor.

    Args:
        path: The folder of an OpenVINO model, or an ONNX file.
    """
    return fastest_precision() if "bf16" in backend_of(_file(path)).precisions else "fp32"


def _file(path: Path) -> Path:
    """Return the file by which a model is opened."""
    file = find_exported(path)
    assert file is not None, path
    return file


def _change(before: dict[str, float], after: dict[str, float]) -> str:
    return ", ".join(f"{name} {before[name]:.2f} to {after[name]:.2f}" for name in before)


def _model(cfg: CfgNode, path: Path, precision: str | None = None) -> ExportedModel:
    """Open an exported model, in its own number format or another one."""
    file = _file(path)
    own = load_model_config(file, training=False)
    settings = cfg.clone()
    settings.defrost()
    settings.TEST.PRECISION = precision or own.TEST.PRECISION
    # The run's own evaluation may do what an exported file cannot.
    settings.TEST.VALIDATION_LOSS, settings.TEST.AUG.ENABLED = False, False
    return ExportedModel.from_config(settings, file)


def _compare(
    source: Path, target: Path, images: Sequence[NDArray[np.uint8]], metadata: Metadata, precision: str
) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of images and the table of differences of a model that computes what is not int8 as given."""
    chosen = [images[i] for i in np.linspace(0, len(images) - 1, min(_COMPARED, len(images))).round().astype(int)]
    options: dict[str, Any] = {"outputs": metadata.outputs, "threads": torch.get_num_threads()}
    backend = backend_of(_file(source))
    one = backend.open(_file(source), **options)
    other = backend.open(_file(target), **options, precision=precision)
    batches = [image[None] for image in chosen]
    return len(chosen), differences([one(batch) for batch in batches], [other(batch) for batch in batches])
