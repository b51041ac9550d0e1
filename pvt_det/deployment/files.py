"""Files of exported models: ONNX, a `torch.export` program, or a program compiled by AOTInductor.

All take one input, `image`: `N×3×H×W`, uint8, RGB, of any batch and image size. The outputs are documented in the
graph's `forward`. Everything else that users of the file need is in its metadata.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbols

from pvt_det.deployment.suppression import translations
from pvt_det.errors import ConfigError

Kind: TypeAlias = Literal["onnx", "program", "compiled"]
# Maps images N×3×H×W, uint8, RGB, to outputs by name.
Function: TypeAlias = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]

# The oldest opset with Detectron2's ROIAlign and reductions over axes given as inputs; runtimes support it since 2023.
OPSET = 18
METADATA_NAME = "pvt_det.json"
INPUT_NAME = "image"


def trace(graph: nn.Module, example: Tensor) -> ExportedProgram:
    """Trace a graph for any batch and image size.

    Args:
        graph: Module that takes images `N×3×H×W`, uint8.
        example: Example images, at least 2, with different sides that no stride divides.
    """
    graph.eval()
    dynamic_sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # Do not specialize on maps with a single row or column.
    with (
        symbols.patch(  # type: ignore[attr-defined]
            backed_size_oblivious=True
        ),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(graph, (example,), dynamic_shapes=(dynamic_sizes,), strict=False)


def write(
    program: ExportedProgram, path: Path, kind: Kind, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Write a traced model.

    Args:
        program: Result of `trace`, for a graph that was built for this kind.
        path: Path of the file to write.
        kind: "onnx"; "program", for `torch.export.load`; "compiled", for `torch._inductor.aoti_load_package`.
        outputs: Names of the outputs.
        metadata: Strings by name to store in the file.

    Raises:
        ConfigError: A package or the C++ compiler that this kind needs is missing.
    """
    if kind == "onnx":
        _write_onnx(program, path, outputs, metadata)
        return
    if kind == "compiled":
        require_compiler()
        options = {"aot_inductor.metadata": dict(metadata)}
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    else:
        with warnings.catch_warnings():
            # About weights that share memory. The file's outputs are compared with the model's anyway.
            warnings.filterwarnings("ignore", message="No complete tensor found")
            torch.export.save(program, path, extra_files={METADATA_NAME: json.dumps(dict(metadata))})


def open_file(path: Path, kind: Kind, outputs: Sequence[str]) -> Function:
    """Load an exported file as a function that runs on the CPU.

    Args:
        path: Path of the file.
        kind: Kind of the file.
        outputs: Names of the outputs.
    """
    if kind == "onnx":
        return _open_onnx(path)
    model: Callable[..., Any]
    if kind == "compiled":
        model = torch._inductor.aoti_load_package(str(path))
    else:
        # A program refuses sizes unlike those of the traced example (one image, maps with one row). Its graph is the
        # same for all sizes, which the check of the export confirms.
        module: Any = torch.export.load(path).module(check_guards=False)
        module.validate_inputs = False
        model = module

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            results = model(torch.from_numpy(images))
        results = (results,) if isinstance(results, torch.Tensor) else results
        return {name: result.numpy() for name, result in zip(outputs, results, strict=True)}

    return run


def require_compiler() -> None:
    """Check that the C++ compiler of AOTInductor is available.

    Raises:
        ConfigError: The compiler is missing.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"--compile needs a C++ compiler, and {compiler} was not found. Install g++, set the environment variable "
            "CXX to another compiler, or leave --compile out for a portable torch.export program."
        )


def require_onnx() -> None:
    """Check that the packages for writing and running ONNX are installed.

    Raises:
        ConfigError: A package is missing.
    """
    missing = next((name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None), None)
    if missing:
        raise ConfigError(
            f"ONNX needs the package {missing}, which is missing. Run pip install onnx onnxscript onnxruntime, or pip "
            "install -e '.[export]' in a checkout."
        )


def _write_onnx(program: ExportedProgram, path: Path, outputs: Sequence[str], metadata: Mapping[str, str]) -> None:
    require_onnx()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program,
            input_names=[INPUT_NAME],
            output_names=list(outputs),
            opset_version=OPSET,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert converted is not None
    converted.model.metadata_props.update(metadata)
    converted.save(path, external_data=False)


def _open_onnx(path: Path) -> Function:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {INPUT_NAME: images}), strict=True))
