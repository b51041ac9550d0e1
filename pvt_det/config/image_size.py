"""The config keys that `--image-size` sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from pvt_det.config.architecture import is_segmentor


def image_size_keys(cfg: CfgNode, sides: Sequence[int], *, training: bool) -> dict[str, Any]:
    """Return the config keys and values that resize images to a size.

    With one number, a detector's images are scaled to fit into a square of that side. A segmentor keeps the ratio of
    its short side to its longest side, because its training images are cropped afterwards. Keys that replace or follow
    the resizing, such as the crop of a segmentor, get the same size.

    Args:
        cfg: A complete config.
        sides: The short side in pixels, and optionally the longest side.
        training: Whether to also set the size of training images.

    Returns:
        The values by dotted key.
    """
    short, inputs = sides[0], cfg.INPUT
    keys: dict[str, Any] = {}
    if training:
        longest = _longest(cfg, sides, inputs.MAX_SIZE_TRAIN, max(inputs.MIN_SIZE_TRAIN))
        keys |= {"INPUT.MIN_SIZE_TRAIN": (short,), "INPUT.MAX_SIZE_TRAIN": longest}
        if inputs.MIN_SIZE_TRAIN_SAMPLING == "range":
            keys["INPUT.MIN_SIZE_TRAIN"] = (short, short)
        if inputs.LARGE_SCALE_JITTER.ENABLED:
            keys["INPUT.LARGE_SCALE_JITTER.SIZE"] = (short, longest)
        if is_segmentor(cfg) and inputs.CROP.ENABLED and inputs.CROP.TYPE == "absolute":
            keys["INPUT.CROP.SIZE"] = [short, short]
    longest = _longest(cfg, sides, inputs.MAX_SIZE_TEST, inputs.MIN_SIZE_TEST)
    return keys | {"INPUT.MIN_SIZE_TEST": short, "INPUT.MAX_SIZE_TEST": longest}


def _longest(cfg: CfgNode, sides: Sequence[int], longest: int, short: int) -> int:
    if len(sides) > 1:
        return sides[1]
    return round(sides[0] * max(1.0, longest / short)) if is_segmentor(cfg) and short else sides[0]
