"""Tracing: from a module to a program with open sizes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbols


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
