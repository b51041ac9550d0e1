"""Run `torch.export` programs with PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvt_det.runtimes.backend import Backend, Function, damaged, not_supported
from pvt_det.runtimes.program_check import checked_program

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The metadata in a .pt2 file.
METADATA_NAME = "pvt_det.json"


class TorchBackend(Backend):
    """`torch.export` programs, run by PyTorch with its own number of threads."""

    name = "torch"
    runtime = "PyTorch"
    package = "torch"
    suffix = ".pt2"

    def read_metadata(self, path: Path) -> dict[str, str]:
        """Read the metadata of a program.

        Args:
            path: The file.
        """
        content = checked_program(path).extra.get(METADATA_NAME, b"{}")
        try:
            entries = json.loads(content)
        except ValueError as error:
            raise damaged(path, f"its metadata is not valid JSON: {error}") from error
        if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
            raise damaged(path, "its metadata is not a JSON object of strings")
        return entries

    def open(self, path: Path, *, outputs: Sequence[str], threads: int, precision: str = "fp32") -> Function:
        """Load a program.

        Args:
            path: The file.
            outputs: Names of the outputs to return. Their order in the program is in its metadata.
            threads: Not used: PyTorch has one number of threads for the process.
            precision: Only "fp32".
        """
        import torch
        import torchvision  # noqa: F401  (registers its operators)
        from torch.export.pt2_archive._package import load_pt2

        archive = checked_program(path)
        names = json.loads(self.read_metadata(path).get("outputs", "[]"))
        if missing := set(outputs) - set(names):
            raise damaged(path, f"it has no output {', '.join(sorted(missing))}")
        try:
            # torch.export.load logs the reason of an error instead of raising it.
            program = load_pt2(archive.copy()).exported_programs["model"]
            # A program refuses sizes unlike those of the traced example (one image, maps with one row). Its graph is
            # the same for all sizes, which the check of the export confirms.
            module: Any = program.module(check_guards=False)
        # Programs of other versions of PyTorch fail in many ways.
        except Exception as error:
            raise not_supported(path, self.version(), error) from error
        module.validate_inputs = False

        def run(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
            with torch.inference_mode():
                results = module(torch.from_numpy(images))
            results = (results,) if isinstance(results, torch.Tensor) else results
            return {name: result.numpy() for name, result in zip(names, results, strict=True) if name in outputs}

        return run
