"""Run OpenVINO models, each of which is a folder with its graph, its weights and our metadata."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.runtimes.backend import IMAGES_NAME, INPUT_NAME, Backend, Function, damaged, not_supported, read_bytes
from pvt_det.runtimes.exact_boxes import keep_boxes_exact
from pvt_det.utils.digest import file_digest
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import file_fault

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRAPH_NAME, WEIGHTS_NAME, METADATA_NAME = "model.xml", "model.bin", "metadata.json"
# Metadata entry with the SHA-256 of the other files, so that files of different models are not mixed.
_DIGESTS = "files"
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def import_openvino() -> Any:
    """Import OpenVINO without its usage statistics, which its tools and NNCF would send over the internet.

    Returns:
        The module `openvino`.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    OpenVINOBackend().require()
    import openvino

    with contextlib.suppress(ImportError):
        from openvino_telemetry.utils import opt_in_checker

        declined = opt_in_checker.ConsentCheckResult.DECLINED
        opt_in_checker.OptInChecker.check = lambda self, *args, **options: declined
    return openvino


@cache
def fastest_precision() -> str:
    """Return the fastest floating-point format that OpenVINO has on this processor, "bf16" or "fp32".

    OpenVINO does not use the bf16 instructions of all processors that PyTorch uses, such as those of ARM.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "fp32"


def as_function(request: Any, outputs: Sequence[str]) -> Function:
    """Return an inference request of OpenVINO as a function.

    Args:
        request: The `openvino.InferRequest`.
        outputs: Names of the outputs to return.
    """

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        # In a thread of OpenVINO, so that the caller's thread does not keep the state of AMX.
        request.start_async({INPUT_NAME: images})
        request.wait()
        return _copy_outputs(request, outputs)

    return run


def _copy_outputs(request: Any, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {name: request.get_tensor(name).data.copy() for name in outputs}


class _Requests:
    """An OpenVINO model as a function that runs several images at a time, each with a part of the threads.

    This is faster than a batch in one request, whose operators wait for each other's threads. A single image is run
    with all threads.

    Attributes:
        precision: Number format that the processor computes in, by OpenVINO's name.

    Args:
        compile_model: Compiles the model for a performance hint of OpenVINO.
        outputs: Names of the outputs to return.
    """

    def __init__(self, compile_model: Callable[[str], Any], outputs: Sequence[str]) -> None:
        self._compile = compile_model
        self._outputs = outputs
        compiled = compile_model("LATENCY")
        self.precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self._run_one = as_function(compiled.create_infer_request(), outputs)

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the outputs for images `N×3×H×W`, uint8, RGB."""
        if len(images) == 1:
            return self._run_one(images)
        import numpy as np

        found: list[dict[str, NDArray[Any]]] = [{} for _ in images]
        self._queue.set_callback(lambda request, number: found[number].update(_copy_outputs(request, self._outputs)))
        for number in range(len(images)):
            self._queue.start_async({INPUT_NAME: images[number : number + 1]}, number)
        self._queue.wait_all()
        for number, each in enumerate(found):
            if IMAGES_NAME in each:
                each[IMAGES_NAME] += number
        return {name: np.concatenate([each[name] for each in found]) for name in self._outputs}

    @cached_property
    def _queue(self) -> Any:
        import openvino

        return openvino.AsyncInferQueue(self._compile("THROUGHPUT"))


class OpenVINOBackend(Backend):
    """Folders with a model in OpenVINO's format, run by OpenVINO.

    On processors with instructions for bf16, precision "bf16" is about twice as fast as "fp32". It rounds like
    `TEST.PRECISION bf16` does for the model itself.
    """

    name = "openvino"
    runtime = "OpenVINO"
    package = "openvino"
    suffix = ".xml"
    folder_file = GRAPH_NAME
    modules = ("openvino",)
    extra = "openvino"
    precisions = tuple(_HINTS)

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the graph, the weights and the metadata.

        Args:
            path: The graph.
        """
        return tuple(path.with_name(name) for name in (GRAPH_NAME, WEIGHTS_NAME, METADATA_NAME))

    def read_metadata(self, path: Path) -> dict[str, str]:
        """Read the metadata next to the graph.

        Args:
            path: The graph.
        """
        file = path.with_name(METADATA_NAME)
        if path.name != GRAPH_NAME or (not file_fault(path) and file_fault(file)):
            return {}
        try:
            entries = json.loads(read_bytes(file))
        except (ValueError, RecursionError) as error:
            raise damaged(file, f"it is not valid JSON: {error}") from error
        if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
            raise damaged(file, "it is not a JSON object of strings")
        return entries

    def open(self, path: Path, *, outputs: Sequence[str], threads: int, precision: str = "fp32") -> Function:
        """Load a model.

        Args:
            path: The graph.
            outputs: Names of the outputs.
            threads: Number of threads to run with.
            precision: "fp32" or "bf16".
        """
        openvino = import_openvino()
        self._verify(path)
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": threads}
        try:
            model = core.read_model(path, path.with_name(WEIGHTS_NAME))
            if precision == "bf16":
                keep_boxes_exact(model)  # a file cannot say so
            known = {name for output in model.outputs for name in output.names}
            if missing := set(outputs) - known:
                raise damaged(path, f"it has no output {', '.join(sorted(missing))}")
            # Without what only other outputs need.
            part = openvino.Model([model.output(name) for name in outputs], model.get_parameters())
            run = _Requests(
                lambda hint: core.compile_model(part, "CPU", settings | {"PERFORMANCE_HINT": hint}), outputs
            )
        except RuntimeError as error:
            raise not_supported(path, self.version(), error) from error
        if precision != "fp32" and run.precision != _HINTS[precision]:
            raise ConfigError(
                f"TEST.PRECISION {precision}: this processor has no instructions for it, so {self.version()} would "
                "compute in fp32. Leave it out."
            )
        return run

    def write_metadata(self, folder: Path, entries: Mapping[str, str]) -> None:
        """Write the metadata of a model next to its other files.

        Args:
            folder: The folder with the graph and the weights.
            entries: Strings by name.
        """
        digests = {name: file_digest(folder / name) for name in (GRAPH_NAME, WEIGHTS_NAME)}
        content = {**entries, _DIGESTS: json.dumps(digests)}
        write_atomically(folder / METADATA_NAME, json.dumps(content, indent=1))

    def _verify(self, path: Path) -> None:
        """Compare the files with the digests in the metadata."""
        try:
            digests = json.loads(self.read_metadata(path)[_DIGESTS])
            recorded = {name: digests[name] for name in (GRAPH_NAME, WEIGHTS_NAME)}
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise damaged(path.with_name(METADATA_NAME), f"no digests of the other files ({error})") from error
        for name, digest in recorded.items():
            file = path.with_name(name)
            if fault := file_fault(file):
                raise CheckpointError(f"{file} {fault}. Copy the whole folder, or export the model again.")
            if file_digest(file) != digest:
                raise CheckpointError(
                    f"{file} is not the file that {METADATA_NAME} describes: its SHA-256 differs. Copy the whole "
                    "folder, or export the model again."
                )
