"""The one way weights get into a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pvt_det.weights.matching import Grid, LoadReport, match
from pvt_det.weights.reader import read_tensors
from pvt_det.weights.source import locate
from pvt_det.weights.translate import Translation, translate

logger = logging.getLogger(__name__)


def load_pretrained(
    model: nn.Module, source: str | Path | Translation, *, allow_partial: Sequence[str] = ()
) -> LoadReport:
    """Load weights into a classifier, a trunk, a backbone or a whole detector.

    A classifier's or trunk's file goes to the trunk of a detector; of a detector's file, a trunk takes its part. Every
    tensor of the model is set, apart from named exceptions (such as a detector's heads when the file is a classifier,
    or a head for another number of classes), which the report lists. On an error the model is left as it was.

    Args:
        model: The model; its tensors are overwritten in place, on their device and in their number format.
        source: What `locate` takes: a catalog name (`pvt://pvt_small`), a path, a URL, `hf://…`, `torchvision://…`
            or `detectron2://…`; or weights that `read_translation` has read already.
        allow_partial: Patterns (`*`, `?`) of names that may be missing, unexpected or of another shape.

    Returns:
        The report, which is also logged.

    Raises:
        CheckpointError: If the file cannot be had, is broken or unsafe, or does not fit.
        NumericError: If it holds NaN or infinity.
    """
    translation = source if isinstance(source, Translation) else read_translation(source)
    current = model.state_dict()
    chosen, report = match(current, translation, grids=_grids(model), allow_partial=allow_partial)
    model.load_state_dict(current | chosen)
    logger.info("%s", report)
    return report


def read_translation(source: str | Path) -> Translation:
    """Read a checkpoint and bring its tensors under this package's names.

    Args:
        source: As for `load_pretrained`.

    Raises:
        CheckpointError: If the file cannot be had, is broken or unsafe, or its layout is unknown.
    """
    return translate(read_checkpoint(source), str(source))


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors, on the CPU, under the names in the file; fetches it where needed.

    Args:
        source: As for `load_pretrained`.

    Raises:
        CheckpointError: If the file cannot be had, is broken, holds no tensors, or would run code.
    """
    return read_tensors(locate(source))


def _grids(model: nn.Module) -> Sequence[Grid]:
    """Grids of the position embeddings, which the trunk knows; empty where there are none."""
    trunk: Any = next((module for module in model.modules() if hasattr(module, "pos_embed1")), None)
    return getattr(trunk, "grids", ())
