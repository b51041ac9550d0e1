"""Quantize OpenVINO models and ONNX files to int8 with NNCF."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pvt_det.deployment.layers import Operator, float_operators, onnx_operators, openvino_operators
from pvt_det.errors import NumericError
from pvt_det.runtimes.backend import INPUT_NAME, Function
from pvt_det.runtimes.onnx_file import OnnxBackend, open_content
from pvt_det.runtimes.openvino_folder import GRAPH_NAME, OpenVINOBackend, as_function, import_openvino
from pvt_det.utils.console import get_console
from pvt_det.utils.extras import require_packages
from pvt_det.utils.logs import errors_only

# Default number of calibration images.
CALIBRATION_IMAGES = 300
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
    """Quantize an OpenVINO model or an ONNX file.

    Args:
        source: Folder with the OpenVINO model, or the ONNX file.
        target: Folder or file to write, of the same format. It does not exist.
        images: Calibration images `3×H×W`, RGB, uint8, in the model's image size.
        metadata: Strings by name to store with the new model.
        control: How to find operators that must stay in floating point. None quantizes all that are supported, which
            takes minutes instead of hours.

    Raises:
        NumericError: NNCF cannot quantize the model, or cannot reach the accuracy.
    """
    import_openvino()  # without the usage statistics that NNCF would send
    import nncf

    stop = threading.Event()
    model, operators = _read(source)
    dataset = nncf.Dataset(images, lambda image: _unless(stop, {INPUT_NAME: image[None]}))
    options: dict[str, Any] = {
        "model_type": nncf.ModelType.TRANSFORMER,
        "subset_size": len(images),
        "ignored_scope": nncf.IgnoredScope(names=float_operators(operators), validate=False),
    }
    # NNCF 3.4 fails to smooth ONNX models. Where it restores the weights of a layer, it leaves its inputs smoothed.
    unsmoothed = nncf.AdvancedQuantizationParameters(
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    )
    functions = _Functions()

    def run() -> Any:
        if control is None:
            return nncf.quantize(
                model, dataset, advanced_parameters=unsmoothed if _is_onnx(source) else None, **options
            )
        return nncf.quantize_with_accuracy_control(
            model,
            dataset,
            nncf.Dataset(range(control.images)),
            # The second value would be the accuracy of each image.
            validation_fn=lambda each, indices: (_unless(stop, control.measure)(functions(each), list(indices)), None),
            max_drop=control.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            advanced_quantization_parameters=unsmoothed,
            **options,
        )

    try:
        with errors_only("nncf"), _own_console_only():
            quantized = _run_in_thread(run, stop)
    except (nncf.InternalError, nncf.ValidationError, RuntimeError) as error:
        raise NumericError(f"The model cannot be quantized: {error}. Export it without --int8.") from error
    _write(quantized, target, metadata)


def _is_onnx(path: Path) -> bool:
    return path.suffix == OnnxBackend.suffix


def _read(source: Path) -> tuple[Any, dict[str, Operator]]:
    """Return a model and its operators."""
    if _is_onnx(source):
        import onnx

        model = onnx.load(source)
        return model, onnx_operators(model)
    model = import_openvino().Core().read_model(source / GRAPH_NAME)
    return model, openvino_operators(model)


def _write(model: Any, target: Path, metadata: Mapping[str, str]) -> None:
    if _is_onnx(target):
        import onnx

        onnx.helper.set_model_props(model, dict(metadata))
        onnx.save(model, target)
        return
    target.mkdir()
    import_openvino().save_model(model, target / GRAPH_NAME, compress_to_fp16=False)
    OpenVINOBackend().write_metadata(target, metadata)


class _Functions:
    """Opens the models that NNCF gives to be measured, each of them many times in a row."""

    def __init__(self) -> None:
        self._model: Any = None
        self._function: Function | None = None

    def __call__(self, model: Any) -> Function:
        if model is not self._model:
            self._model, self._function = model, _as_function(model)
        assert self._function is not None
        return self._function


def _as_function(model: Any) -> Function:
    """Return a compiled OpenVINO model or an ONNX model as a function."""
    if hasattr(model, "create_infer_request"):
        return as_function(model.create_infer_request(), [output.get_any_name() for output in model.outputs])
    return open_content(model.SerializeToString(), torch.get_num_threads())


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
