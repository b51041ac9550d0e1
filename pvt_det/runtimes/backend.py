"""What a runtime for exported files has to provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from pvt_det.errors import CheckpointError
from pvt_det.utils.extras import require_packages
from pvt_det.utils.paths import file_fault

if TYPE_CHECKING:  # the options of commands need no NumPy
    import numpy as np
    from numpy.typing import NDArray

# Maps images N×3×H×W, uint8, RGB, to outputs by name.
Function: TypeAlias = "Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]"

INPUT_NAME = "image"
# Output of detectors with the index of the image of each detection.
IMAGES_NAME = "images"


class Backend(ABC):
    """A file format and the runtime that runs it on the CPU.

    Attributes:
        name: Value of `pvt-det export --format`, such as "onnx".
        runtime: Name of the runtime for messages, such as "ONNX Runtime".
        package: Package of the runtime, whose version is recorded.
        suffix: Suffix of the exported file.
        folder_file: Name of that file if it is in a folder with others, by which users name it; "" otherwise.
        modules: Modules that reading and running a file needs.
        extra: The extra of this package that installs them.
        precisions: Values of `TEST.PRECISION` that the runtime can compute in.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    package: ClassVar[str]
    suffix: ClassVar[str]
    folder_file: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def require(self) -> None:
        """Check that the runtime is installed.

        Raises:
            ConfigError: A package is missing.
        """
        require_packages(self.runtime, *self.modules, extra=self.extra)

    def version(self) -> str:
        """Return the name and version of the runtime, for the record of a result."""
        return f"{self.runtime} {version(self.package)}"

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return all files that belong to an exported file.

        Args:
            path: The exported file.
        """
        return (path,)

    @abstractmethod
    def read_metadata(self, path: Path) -> dict[str, str]:
        """Read the metadata of a file without running anything in it.

        Args:
            path: An existing file.

        Returns:
            Strings by name; empty if the file has none.

        Raises:
            CheckpointError: The file is damaged, or refers to files elsewhere.
            ConfigError: A package that is needed to read the file is missing.
        """

    @abstractmethod
    def open(self, path: Path, *, outputs: Sequence[str], threads: int, precision: str = "fp32") -> Function:
        """Load a file.

        Args:
            path: An existing file.
            outputs: Names of the outputs to return, all or some of those in the metadata.
            threads: Number of threads to run with.
            precision: One of `precisions`.

        Returns:
            The model as a function. It may be called by one thread at a time.

        Raises:
            CheckpointError: The file is damaged, or the runtime does not support it.
            ConfigError: A package that is needed to run the file is missing.
        """


def read_bytes(path: Path) -> bytes:
    """Read a file of an exported model.

    Args:
        path: The file.

    Raises:
        CheckpointError: It does not exist or cannot be read.
    """
    if fault := file_fault(path):
        raise CheckpointError(f"{path} {fault}. Expected a file of an exported model.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def damaged(path: Path, reason: object) -> CheckpointError:
    """Return the error for a file that cannot be read.

    Args:
        path: The file.
        reason: What is wrong with it.
    """
    text = " ".join(str(reason).split())[:300]
    return CheckpointError(f"{path} is damaged or not an exported model: {text}. Copy it or export it again.")


def not_supported(path: Path, runtime: str, reason: object) -> CheckpointError:
    """Return the error for a file that a runtime cannot run.

    Args:
        path: The file.
        runtime: Name and version of the runtime.
        reason: The message of the runtime.
    """
    text = " ".join(str(reason).split())[:500]
    return CheckpointError(f"{runtime} cannot run {path}: {text}. Update the runtime, or export the model again.")
