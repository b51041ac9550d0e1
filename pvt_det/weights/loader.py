"""Load pretrained weights into a model, strictly: every tensor is set or accounted for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pvt_det.models.timm_models import convert_checkpoint, is_timm_model
from pvt_det.weights.matching import Grid, LoadReport, match
from pvt_det.weights.reader import read_tensors
from pvt_det.weights.source import locate
from pvt_det.weights.translate import Translation, translate, translate_timm

logger = logging.getLogger(__name__)


def load_pretrained(
    model: nn.Module, source: str | Path | Translation, *, allow_partial: Sequence[str] = ()
) -> LoadReport:
    """Load weights into a classifier, a trunk, a backbone or a whole detector.

    Weights of a classifier or trunk are loaded into the trunk of a detector. A trunk takes its own part of a detector's
    weights. Every tensor of the model is set, except those that the report lists, such as a detector's heads when the
    file holds a classifier, or a head for a different number of classes. On an error the model is left unchanged.

    Args:
        model: The model, which may also be a classifier of timm. Its tensors are overwritten in place and keep their
            device and dtype.
        source: The weights: a catalog name (`pvt://pvt_small`), a path, a URL, `hf://…`, `torchvision://…` or
            `detectron2://…` (see `pvt_det.weights.source.locate`), or weights that `read_translation` returned.
        allow_partial: Patterns (`*`, `?`) of tensor names that may be missing, unexpected or have a different shape.

    Returns:
        A report of what was loaded, which is also logged.

    Raises:
        CheckpointError: If the file is not available, is broken or unsafe, or does not fit the model.
        NumericError: If the file holds NaN or infinity.
    """
    timm_trunk: Any = next((module for module in model.modules() if hasattr(module, "from_timm")), None)
    from_timm = timm_trunk.from_timm if timm_trunk is not None else None
    if is_timm_model(model):
        from_timm = partial(convert_checkpoint, model=model)
    if isinstance(source, Translation):
        translation = source
    elif from_timm is None:
        translation = read_translation(source)
    else:
        translation = translate_timm(read_checkpoint(source), str(source), from_timm)
    current = model.state_dict()
    unused = getattr(timm_trunk, "unused", ())
    chosen, report = match(current, translation, grids=_grids(model), unused=unused, allow_partial=allow_partial)
    model.load_state_dict(current | chosen)
    logger.info("%s", report)
    return report


def read_translation(source: str | Path) -> Translation:
    """Read a checkpoint and rename its tensors to this package's names.

    Args:
        source: The checkpoint: a catalog name, a path or a URL, in any form that `load_pretrained` accepts.

    Returns:
        The renamed tensors, on the CPU, and the layout that was recognized.

    Raises:
        CheckpointError: If the file is not available, is broken or unsafe, or its layout is unknown.
    """
    return translate(read_checkpoint(source), str(source))


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors under the names in the file, downloading it if needed.

    Args:
        source: The checkpoint: a catalog name, a path or a URL, in any form that `load_pretrained` accepts.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: If the file is not available, is broken, holds no tensors, or would run code.
    """
    return read_tensors(locate(source))


def _grids(model: nn.Module) -> Sequence[Grid]:
    """Return the grids of the trunk's position embeddings, or an empty tuple if it has none."""
    trunk: Any = next((module for module in model.modules() if hasattr(module, "pos_embed1")), None)
    return getattr(trunk, "grids", ())
