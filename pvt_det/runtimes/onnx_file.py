"""Run ONNX files with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvt_det.errors import CheckpointError
from pvt_det.runtimes.backend import INPUT_NAME, Backend, Function, damaged, not_supported, read_bytes

if TYPE_CHECKING:
    import onnx


class OnnxBackend(Backend):
    """ONNX files, run by ONNX Runtime. They are complete: weights in other files are refused."""

    name = "onnx"
    runtime = "ONNX Runtime"
    package = "onnxruntime"
    suffix = ".onnx"
    modules = ("onnx", "onnxruntime")
    extra = "export"

    def read_metadata(self, path: Path) -> dict[str, str]:
        """Read the metadata of an ONNX file.

        Args:
            path: The file.
        """
        self.require()
        return {entry.key: entry.value for entry in _parse(path, read_bytes(path)).metadata_props}

    def open(self, path: Path, *, outputs: Sequence[str], threads: int, precision: str = "fp32") -> Function:
        """Load an ONNX file.

        Args:
            path: The file.
            outputs: Names of the outputs.
            threads: Number of threads of the session.
            precision: Only "fp32".
        """
        self.require()
        content = read_bytes(path)
        _parse(path, content)
        try:
            session = _session(content, threads)
        # ONNX Runtime's errors have no common base class.
        except Exception as error:
            raise not_supported(path, self.version(), error) from error
        if missing := set(outputs) - {output.name for output in session.get_outputs()}:
            raise damaged(path, f"it has no output {', '.join(sorted(missing))}")
        return _as_function(session, outputs)


def open_content(content: bytes, threads: int) -> Function:
    """Load a model of this process that is not in a file.

    Args:
        content: The serialized ONNX model.
        threads: Number of threads of the session.

    Returns:
        The model as a function with all its outputs.
    """
    session = _session(content, threads)
    return _as_function(session, [output.name for output in session.get_outputs()])


def _session(content: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _as_function(session: Any, outputs: Sequence[str]) -> Function:
    import onnxruntime

    names, options = list(outputs), onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return lambda images: dict(zip(names, session.run(names, {INPUT_NAME: images}, options), strict=True))


def _parse(path: Path, content: bytes) -> onnx.ModelProto:
    """Parse an ONNX model, and refuse weights in other files, which could be any files of this machine."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise damaged(path, error) from error
    if any(tensor.external_data or tensor.data_location == tensor.EXTERNAL for tensor in _tensors(model)):
        raise CheckpointError(
            f"{path} keeps weights in other files, which is refused because it could name any file of this machine. "
            "Expected one file, as pvt-det export writes it."
        )
    return model


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield every tensor in a message, also those in attributes, subgraphs and functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if field.is_repeated else (value,):
            if field.message_type.name == "TensorProto":
                yield inner
            else:
                yield from _tensors(inner)
