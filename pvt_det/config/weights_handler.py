"""Let Detectron2's own code load `pvt://…`, `torchvision://…` and `hf://…`: handlers for its PathManager."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager
from torch import Tensor

from pvt_det.modeling.backbone import create_backbone
from pvt_det.models.variants import VARIANTS
from pvt_det.utils.digest import file_digest
from pvt_det.utils.paths import cache_folder
from pvt_det.weights import load_pretrained, read_translation, save_checkpoint
from pvt_det.weights.matching import identify
from pvt_det.weights.source import locate
from pvt_det.weights.translate import TRUNK_PREFIX, Translation

_OURS, _OTHERS = "pvt://", ("torchvision://", "hf://")
# A classifier's last layer, and counters that Detectron2's FrozenBatchNorm does not have.
_UNUSED = ("stem.fc.", "num_batches_tracked")


@functools.cache
def register_weights() -> None:
    """Register the handlers, unless another package has registered one for the same prefix."""
    PathManager.register_handler(WeightsHandler(_OURS))
    for prefix in _OTHERS:
        with suppress(KeyError):
            PathManager.register_handler(WeightsHandler(prefix), allow_override=False)


class WeightsHandler(PathHandler):
    """Resolves published weights to files that Detectron2's `DetectionCheckpointer` loads.

    Args:
        prefix: Start of the paths that it resolves, such as "pvt://".
    """

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(checkpointer_file(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return checkpointer_file(path).open(mode, buffering)


def checkpointer_file(source: str) -> Path:
    """Return weights as a file for `DetectionCheckpointer`, converted on first use.

    `DetectionCheckpointer` ignores keys that it does not know, so that a detector would train from random weights if it
    were given a classifier's file. The converted file has the keys of this package's backbones and lets
    `DetectionCheckpointer` find the module that they belong to.

    Args:
        source: The weights, in any form that `MODEL.WEIGHTS` accepts.

    Returns:
        Path of the converted file in the cache folder.

    Raises:
        CheckpointError: If the weights are not available, are broken, or have an unknown layout.
    """
    file = locate(source)
    converted = cache_folder() / "for_detectron2" / f"{file.stem}-{file_digest(file)[:16]}.pth"
    if not converted.is_file():
        translation = read_translation(file)
        content: dict[str, Any] = {"model": _tensors(translation)}
        if not translation.is_detector:
            content["matching_heuristics"] = True  # add the prefix of the backbone
        save_checkpoint(converted, content)
    return converted


def _tensors(translation: Translation) -> dict[str, Tensor]:
    """Return the tensors of a detector, or of a backbone without the layers of a classifier."""
    variant = identify(translation.tensors)
    if variant not in VARIANTS:
        return {name: tensor for name, tensor in translation.tensors.items() if not _is_unused(name)}
    trunk = create_backbone(variant)
    load_pretrained(trunk, translation)
    state = trunk.state_dict()
    if not translation.is_detector:
        return state
    heads = {name: tensor for name, tensor in translation.tensors.items() if not name.startswith(TRUNK_PREFIX)}
    return heads | {TRUNK_PREFIX + name: tensor for name, tensor in state.items()}


def _is_unused(name: str) -> bool:
    return name.startswith(_UNUSED[0]) or name.endswith(_UNUSED[1])
