"""Write exported models: ONNX files, OpenVINO folders, or `torch.export` programs.

All take one input, `image`: `N×3×H×W`, uint8, RGB, of any batch and image size. The outputs are documented in the
graph's `forward`. Everything else that users of the file need is in its metadata.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbols

from pvt_det.deployment.suppression import translations
from pvt_det.errors import ConfigError
from pvt_det.runtimes.backend import INPUT_NAME
from pvt_det.runtimes.backends import BACKENDS
from pvt_det.runtimes.openvino_folder import GRAPH_NAME, OpenVINOBackend, import_openvino
from pvt_det.runtimes.torch_program import METADATA_NAME
from pvt_det.utils.extras import require_packages

Format: TypeAlias = Literal["onnx", "torch", "openvino"]
# How the names of files and folders end, by format.
ENDINGS: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "openvino": "_openvino"}

# The oldest opset with Detectron2's ROIAlign and reductions over axes given as inputs; runtimes support it since 2023.
OPSET = 18
# What writing needs in addition to running.
_WRITERS: dict[Format, tuple[str, ...]] = {"onnx": ("onnxscript",), "openvino": ("onnx", "onnxscript"), "torch": ()}


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
        program = torch.export.export(graph, (example,), dynamic_shapes=(dynamic_sizes,), strict=False)
    # Of levels that no head reads, PyTorch writes parts that it cannot read.
    program.graph.eliminate_dead_code()
    for node in program.graph.nodes:
        # Holds paths of this machine, which would be written to the file.
        node.meta.pop("stack_trace", None)
    return program


def write(
    program: ExportedProgram, path: Path, kind: Format, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Write a traced model.

    Args:
        program: Result of `trace`, for a graph that was built for this format.
        path: Path of the file to write. With "openvino", the folder.
        kind: The format.
        outputs: Names of the outputs.
        metadata: Strings by name to store with the model.

    Raises:
        ConfigError: A package that this format needs is missing.
    """
    require_writer(kind)
    if kind == "onnx":
        _write_onnx(program, path, outputs, metadata)
    elif kind == "openvino":
        _write_openvino(program, path, outputs, metadata)
    else:
        with warnings.catch_warnings():
            # About weights that share memory. The file's outputs are compared with the model's anyway.
            warnings.filterwarnings("ignore", message="No complete tensor found")
            torch.export.save(program, path, extra_files={METADATA_NAME: json.dumps(dict(metadata))})


def convert_to_openvino(file: Path, folder: Path, metadata: Mapping[str, str]) -> None:
    """Convert an ONNX file to a folder with an OpenVINO model.

    Args:
        file: The ONNX file.
        folder: The folder to write, which does not exist.
        metadata: Strings by name to store with the model.
    """
    openvino = import_openvino()
    model = openvino.convert_model(file)
    folder.mkdir()
    openvino.save_model(model, folder / GRAPH_NAME, compress_to_fp16=False)
    OpenVINOBackend().write_metadata(folder, metadata)


def require_writer(kind: Format) -> None:
    """Check that the packages for writing and running a format are installed.

    Args:
        kind: The format.

    Raises:
        ConfigError: A package is missing.
    """
    backend = BACKENDS[kind]
    require_packages(f"--format {kind}", *backend.modules, *_WRITERS[kind], extra=backend.extra)


@contextmanager
def unchecked(path: Path) -> Iterator[Path]:
    """Context manager for writing a file or a folder that replaces an older one if the block ends without an error.

    Args:
        path: The file or folder to write. Its parent must exist.

    Yields:
        Path to write to, with the same suffix.
    """
    path = path.resolve()  # a link stays, and what it points to is replaced
    temporary = path.with_name(f".unchecked-{path.name}")
    remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            # A folder is only replaced by a folder that does not exist.
            old = path.with_name(f".old-{path.name}")
            remove(old)
            path.rename(old)
            temporary.rename(path)
            remove(old)
        else:
            temporary.replace(path)
    finally:
        remove(temporary)


def model_file(path: Path, kind: Format) -> Path:
    """Return the file by which a written model is opened.

    Args:
        path: The path that was given to `write`.
        kind: The format.
    """
    return path / GRAPH_NAME if kind == "openvino" else path


def require_free_folder(path: Path) -> None:
    """Check that a folder can be replaced by an OpenVINO model.

    Args:
        path: The folder, which may not exist.

    Raises:
        ConfigError: It is a file, or a folder with other files than those of an OpenVINO model.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file. An OpenVINO model is a folder. Choose another name with --output.")
    own = {file.name for file in OpenVINOBackend().files(path / GRAPH_NAME)}
    if path.is_dir() and (others := sorted({entry.name for entry in path.iterdir()} - own)):
        raise ConfigError(
            f"{path} contains {others[0]}, which is not part of an OpenVINO model and would be deleted. Choose another "
            "folder with --output."
        )


def remove(path: Path) -> None:
    """Delete a written model, if it exists.

    Args:
        path: The file or folder.
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_onnx(program: ExportedProgram, path: Path, outputs: Sequence[str], metadata: Mapping[str, str]) -> None:
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


def _write_openvino(program: ExportedProgram, path: Path, outputs: Sequence[str], metadata: Mapping[str, str]) -> None:
    with tempfile.TemporaryDirectory(prefix="pvt_det_") as folder:
        file = Path(folder, "model.onnx")
        _write_onnx(program, file, outputs, {})
        convert_to_openvino(file, path, metadata)
