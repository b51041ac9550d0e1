"""Quantize OpenVINO models to int8 with NNCF.

Only convolutions and matrix products with weights are quantized, and of these neither the first layer, which sees the
pixels, nor the last layers of the heads, whose outputs are scores and box deltas. These, attention scores, softmax,
LayerNorm, box decoding and non-maximum suppression stay in floating point: they cost accuracy, and OpenVINO runs
attention faster as one fused operator in bf16 than in int8.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pvt_det.errors import NumericError
from pvt_det.runtimes.backend import INPUT_NAME, Function
from pvt_det.runtimes.openvino_folder import GRAPH_NAME, OpenVINOBackend, as_function, import_openvino
from pvt_det.utils.console import get_console
from pvt_det.utils.extras import require_packages

# Default number of calibration images.
CALIBRATION_IMAGES = 300
_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
# Between a weight and the operator that uses it.
_RESHAPED = ("Convert", "Reshape", "Transpose", "Unsqueeze")
# Last layers that other layers follow: the second stage of an R-CNN.
_LAST = re.compile(r"(objectness_logits|anchor_deltas|cls_score|bbox_pred)\.weight$")

_Value = TypeVar("_Value")

# Returns the accuracy of a model on some images, given as indices, in percentage points. Higher is better, and 0 is not
# allowed for the model in floating point, because NNCF divides by it.
Measure = Callable[[Function, Sequence[int]], float]


@dataclass(frozen=True)
class AccuracyControl:
    """How to keep operators in floating point until the accuracy is high enough.

    Attributes:
        measure: Returns the accuracy of a model in fp32 on some images.
        images: Number of images.
        max_drop: Largest accepted loss of accuracy in percentage points.
    """

    measure: Measure
    images: int
    max_drop: float


def require_nncf() -> None:
    """Check that NNCF is installed.

    Raises:
        ConfigError: It is missing.
    """
    require_packages("--int8", "nncf", "openvino", extra="openvino")


def quantize(
    source: Path,
    target: Path,
    images: Sequence[NDArray[np.uint8]],
    metadata: Mapping[str, str],
    control: AccuracyControl | None = None,
) -> None:
    """Quantize an OpenVINO model.

    Args:
        source: Folder with the model.
        target: Folder to write, which does not exist.
        images: Calibration images `3×H×W`, RGB, uint8, in the model's image size.
        metadata: Strings by name to store with the new model.
        control: How to find operators that must stay in floating point. None quantizes all that are supported, which
            takes minutes instead of hours.

    Raises:
        NumericError: NNCF cannot quantize the model, or cannot reach the accuracy.
    """
    openvino = import_openvino()
    import nncf

    nncf.set_log_level(logging.ERROR)
    stop = threading.Event()
    model = openvino.Core().read_model(source / GRAPH_NAME)
    dataset = nncf.Dataset(images, lambda image: _unless(stop, {INPUT_NAME: image[None]}))
    options: dict[str, Any] = {
        "model_type": nncf.ModelType.TRANSFORMER,
        "subset_size": len(images),
        "ignored_scope": nncf.IgnoredScope(names=_float_operators(model), validate=False),
    }

    def run() -> Any:
        if control is None:
            return nncf.quantize(model, dataset, **options)
        return nncf.quantize_with_accuracy_control(
            model,
            dataset,
            nncf.Dataset(range(control.images)),
            validation_fn=lambda compiled, indices: _validate(_unless(stop, control.measure), compiled, indices),
            max_drop=control.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            # NNCF 3.4 restores a layer's weights, but not the scale by which SmoothQuant divided its inputs.
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
            ),
            **options,
        )

    try:
        with _own_console_only():
            quantized = _run_in_thread(run, stop)
    except (nncf.InternalError, nncf.ValidationError, RuntimeError) as error:
        raise NumericError(f"The model cannot be quantized: {error}. Export it without --int8.") from error
    target.mkdir()
    openvino.save_model(quantized, target / GRAPH_NAME, compress_to_fp16=False)
    OpenVINOBackend().write_metadata(target, metadata)


class _Stopped(Exception):
    """Ends NNCF's thread."""


def _unless(stop: threading.Event, value: _Value) -> _Value:
    """Return a value, or end the thread if `stop` is set."""
    if stop.is_set():
        raise _Stopped
    return value


def _run_in_thread(function: Callable[[], _Value], stop: threading.Event) -> _Value:
    """Call a function in another thread, so that this one does not keep the state of AMX.

    After Ctrl-C, `stop` is set, and the thread ends at its next image.
    """
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(function).result()
        except BaseException:
            stop.set()
            raise


@contextlib.contextmanager
def _own_console_only() -> Iterator[None]:
    """Context manager that hides the progress bars of NNCF, but not ours."""
    console = get_console()
    console.file = console.file
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        console.file = None


def _validate(measure: Measure, compiled: Any, indices: Any) -> tuple[float, None]:
    names = [output.get_any_name() for output in compiled.outputs]
    return measure(as_function(compiled.create_infer_request(), names), list(indices)), None


def _float_operators(model: Any) -> list[str]:
    """Return the names of all operators that are not quantized."""
    operators = model.get_ordered_ops()
    weights = {id(operator): name for operator in operators if (name := _weight_name(operator))}
    return [
        operator.get_friendly_name()
        for operator in operators
        if operator.get_type_name() not in ("Constant", "Parameter", "Result")
        and not (weights.get(id(operator)) and not _is_kept(operator, weights[id(operator)]))
    ]


def _weight_name(operator: Any) -> str:
    """Return the name of the weight of a convolution or matrix product, or "" for anything else."""
    if operator.get_type_name() not in _WEIGHTED:
        return ""
    source = operator.input_value(1).get_node()
    while source.get_type_name() in _RESHAPED:
        source = source.input_value(0).get_node()
    return source.get_friendly_name() if source.get_type_name() == "Constant" else ""


def _is_kept(operator: Any, name: str) -> bool:
    """Return whether a layer stays in floating point: the first one of the model, and the last ones of the heads."""
    return _LAST.search(name) is not None or not (_meets_layer(operator, _sources) and _meets_layer(operator, _readers))


def _meets_layer(operator: Any, neighbors: Callable[[Any], list[Any]]) -> bool:
    """Return whether following neighbors from an operator leads to a layer with a weight."""
    waiting, seen = [operator], set()
    while waiting:
        for other in neighbors(waiting.pop()):
            if _weight_name(other):
                return True
            if other.get_friendly_name() not in seen:
                seen.add(other.get_friendly_name())
                waiting.append(other)
    return False


def _sources(operator: Any) -> list[Any]:
    return [value.get_node() for value in operator.input_values()]


def _readers(operator: Any) -> list[Any]:
    return [target.get_node() for output in operator.outputs() for target in output.get_target_inputs()]
