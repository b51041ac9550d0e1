"""The runtimes by the name of their format, and which one a file is for."""

from __future__ import annotations

import os
from pathlib import Path

from pvt_det.errors import CheckpointError
from pvt_det.runtimes.backend import Backend
from pvt_det.runtimes.onnx_file import OnnxBackend
from pvt_det.runtimes.openvino_folder import OpenVINOBackend
from pvt_det.runtimes.torch_program import TorchBackend
from pvt_det.utils.digest import file_digest, value_digest
from pvt_det.utils.paths import file_fault

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (OnnxBackend(), TorchBackend(), OpenVINOBackend())}
_SUFFIXES = {backend.suffix: backend for backend in BACKENDS.values()}


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is named like an exported file. It may not exist.

    Args:
        path: A path, or any other value of `MODEL.WEIGHTS`.
    """
    return Path(path).suffix in _SUFFIXES


def backend_of(path: Path) -> Backend:
    """Return the runtime for an exported file.

    Args:
        path: A path for which `is_exported` is true.
    """
    return _SUFFIXES[path.suffix]


def find_exported(path: str | os.PathLike[str]) -> Path | None:
    """Return the exported file that a user means, or None if it is something else.

    Args:
        path: A path. The folder of an exported file is also that file.
    """
    if is_exported(path):
        return Path(path)
    names = (backend.folder_file for backend in BACKENDS.values() if backend.folder_file)
    return next((file for name in names if not file_fault(file := Path(path, name))), None)


def exported_digest(path: Path) -> str:
    """Return the SHA-256 that identifies an exported file, or the files of its folder together.

    Args:
        path: An exported file, as `find_exported` returns it.

    Raises:
        CheckpointError: A file cannot be read.
    """
    try:
        digests = {file.name: file_digest(file) for file in backend_of(path).files(path)}
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return next(iter(digests.values())) if len(digests) == 1 else value_digest(digests)


def shown_path(path: Path) -> Path:
    """Return the path by which a user names an exported file: the file, or its folder.

    Args:
        path: An exported file, as `find_exported` returns it.
    """
    return path.parent if backend_of(path).folder_file == path.name else path
