"""Exported models as files: ONNX, a `torch.export` program, or that compiled by AOTInductor.

All take one input, `image`: `N×3×H×W`, uint8, RGB, of any number and size, and give the outputs that the graph's
docstring tells. What a user of the file has to know besides is in its metadata.
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

from pvt_det.errors import ConfigError
from pvt_det.export.suppression import translations

Kind: TypeAlias = Literal["onnx", "program", "compiled"]
# From images N×3×H×W, uint8, RGB, to outputs by name.
Function: TypeAlias = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]

# The oldest with ROIAlign as Detectron2 computes it and reductions over axes given as data; runtimes of 2023 know it.
OPSET = 18
METADATA_NAME = "pvt_det.json"
INPUT_NAME = "image"


def trace(graph: nn.Module, example: Tensor) -> ExportedProgram:
    """Trace a graph for images of any number and size.

    Args:
        graph: Takes images `N×3×H×W`, uint8.
        example: Such images, at least 2, with different sides that no stride divides.
    """
    graph.eval()
    open_sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # Maps of one row or column must not be told apart from others.
    with (
        symbols.patch(  # type: ignore[attr-defined]
            backed_size_oblivious=True
        ),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(graph, (example,), dynamic_shapes=(open_sizes,), strict=False)


def write(
    program: ExportedProgram, path: Path, kind: Kind, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Write a traced model.

    Args:
        program: As `trace` gives it, of a graph that was built for this kind.
        path: The file.
        kind: "onnx"; "program", for `torch.export.load`; "compiled", for `torch._inductor.aoti_load_package`.
        outputs: Names of the outputs.
        metadata: Texts to go with it.

    Raises:
        ConfigError: A package or the C++ compiler that this kind needs is not there.
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
            # Of weights that share memory; what the file gives is compared with the model anyway.
            warnings.filterwarnings("ignore", message="No complete tensor found")
            torch.export.save(program, path, extra_files={METADATA_NAME: json.dumps(dict(metadata))})


def open_file(path: Path, kind: Kind, outputs: Sequence[str]) -> Function:
    """A written model as a function, on the CPU."""
    if kind == "onnx":
        return _open_onnx(path)
    model: Callable[..., Any]
    if kind == "compiled":
        model = torch._inductor.aoti_load_package(str(path))
    else:
        # Tracing notes which sizes its example had (several images, maps of more than a row), and a program refuses
        # others; the graph is the same for them, as the check of an export shows.
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
    """Check that the C++ compiler is there that AOTInductor calls.

    Raises:
        ConfigError: It is not.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"compiling needs a C++ compiler, and {compiler} is not found: install g++, or name another in the "
            "environment variable CXX, or leave out --compile for a portable torch.export program."
        )


def require_onnx() -> None:
    """Check that the packages are there that write and run ONNX.

    Raises:
        ConfigError: One is not.
    """
    missing = next((name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None), None)
    if missing:
        raise ConfigError(
            f"ONNX needs the package {missing}: pip install onnx onnxscript onnxruntime, or pip install -e "
            "'.[export]' in a checkout."
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
