"""Checks of a complete config beyond the types of its values: choices, ranges, and keys that must agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode

from pvt_det.config.architecture import SEGMENTOR, anchor_levels_key, is_panoptic, is_segmentor
from pvt_det.config.choices import CHOICES, require_choice
from pvt_det.errors import ConfigError
from pvt_det.modeling.backbone import check_backbone_arguments

_AT_LEAST_ONE = (
    "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TEST",
    "INPUT.SIZE_DIVISOR_TEST",
    "MODEL.FPN.OUT_CHANNELS",
    "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "SOLVER.ACCUMULATE_STEPS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
    "TEST.DETECTIONS_PER_IMAGE",
)
_VERSION = 2
# In [0, 1).
_FRACTIONS = (
    "MODEL.SEM_SEG_HEAD.DROPOUT",
    "SOLVER.BETAS",
    "SOLVER.EMA.DECAY",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
)
# Augmentations for semantic segmentation only, with the values that disable them.
_SEMANTIC_INPUT = {
    "INPUT.SCALE_RANGE": (1.0, 1.0),
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "INPUT.SIZE_DIVISOR_TEST": 1,
}
# Augmentations for detectors only, with the values that disable them.
_DETECTION_INPUT = {
    "INPUT.LARGE_SCALE_JITTER.ENABLED": False,
    "INPUT.CROP_BRANCH.ENABLED": False,
    "INPUT.MOSAIC.PROBABILITY": 0.0,
    "INPUT.COPY_PASTE.PROBABILITY": 0.0,
}


def validate_config(cfg: CfgNode, where: str = "config") -> None:
    """Check every value that has choices, a range, or must agree with other keys.

    Args:
        cfg: A complete config, with Detectron2's keys and this package's.
        where: Name of the config file, for messages.

    Raises:
        ConfigError: A value is invalid. The message names the key, its value, and what was expected.
    """

    def refuse(key: str, expected: str) -> ConfigError:
        return ConfigError(f"{where}: {key} = {_get(cfg, key)!r}: {expected}")

    for key, choices in (*CHOICES.items(), *_registered_names().items()):
        require_choice(key, _get(cfg, key), choices, where)
    for key in _AT_LEAST_ONE:
        if _get(cfg, key) < 1:
            raise refuse(key, "expected 1 or more.")
    for key in _FRACTIONS:
        if not all(0 <= value < 1 for value in _as_list(_get(cfg, key))):
            raise refuse(key, "expected 0 or more and less than 1.")
    if cfg.VERSION != _VERSION:
        raise refuse("VERSION", f"expected {_VERSION}, Detectron2's config version.")
    if not is_device(cfg.MODEL.DEVICE):
        raise refuse("MODEL.DEVICE", "expected cpu, cuda, or a GPU by its index, such as cuda:1.")
    _check_schedule(cfg, refuse)
    _check_trunk(cfg, where)
    _check_pixels(cfg, refuse)
    _check_input_sizes(cfg, refuse)
    _check_augmentations(cfg, refuse)
    _check_semantic(cfg, refuse)
    _check_anchors(cfg, refuse)


_Refuse = Callable[[str, str], ConfigError]


def _registered_names() -> dict[str, tuple[str, ...]]:
    # Imported here because `import pvt_det` fills the registries and may still be in progress when this module loads.
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        ROI_HEADS_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
    )

    from pvt_det.models import list_models

    return {
        "MODEL.PVT.VARIANT": tuple(list_models()),
        "MODEL.META_ARCHITECTURE": tuple(name for name, _ in META_ARCH_REGISTRY),
        "MODEL.BACKBONE.NAME": tuple(name for name, _ in BACKBONE_REGISTRY),
        "MODEL.ROI_HEADS.NAME": tuple(name for name, _ in ROI_HEADS_REGISTRY),
        "MODEL.SEM_SEG_HEAD.NAME": tuple(name for name, _ in SEM_SEG_HEADS_REGISTRY),
    }


def is_device(name: str) -> bool:
    """Return whether PyTorch can compute on devices of this name.

    Args:
        name: Name of a device, such as "cpu" or "cuda:1".
    """
    try:
        return torch.device(name).type != "meta"
    except RuntimeError:
        return False


def _check_schedule(cfg: CfgNode, refuse: _Refuse) -> None:
    # Warm-up ends at the learning rate that the schedule has by then, which is near 0 at the end of the schedule.
    solver = cfg.SOLVER
    falls = solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR" or any(step <= solver.MAX_ITER for step in solver.STEPS)
    if falls and solver.WARMUP_ITERS >= solver.MAX_ITER:
        raise refuse(
            "SOLVER.WARMUP_ITERS",
            f"expected less than SOLVER.MAX_ITER, {solver.MAX_ITER}. The learning rate would stay near 0.",
        )


def _check_trunk(cfg: CfgNode, where: str) -> None:
    pvt = cfg.MODEL.PVT
    check_backbone_arguments(
        out_features=pvt.OUT_FEATURES,
        drop_path_rate=pvt.DROP_PATH_RATE,
        pretrain_img_size=pvt.PRETRAIN_IMG_SIZE,
        frozen_stages=pvt.FROZEN_STAGES,
        checkpoint_stages=pvt.CHECKPOINT_STAGES,
        name_of=lambda argument: f"{where}: MODEL.PVT.{argument.upper()}",
    )


def _check_pixels(cfg: CfgNode, refuse: _Refuse) -> None:
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        if len(_get(cfg, key)) != len(cfg.INPUT.FORMAT):
            raise refuse(key, f"expected 3 numbers, one for each channel of INPUT.FORMAT {cfg.INPUT.FORMAT}.")
    if 0 in cfg.MODEL.PIXEL_STD:
        raise refuse("MODEL.PIXEL_STD", "expected numbers above 0.")


def _check_input_sizes(cfg: CfgNode, refuse: _Refuse) -> None:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not sizes or min(sizes) < 1:
        raise refuse("INPUT.MIN_SIZE_TRAIN", "expected one or more sizes of at least 1 pixel.")
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise refuse(
            "INPUT.MIN_SIZE_TRAIN", "expected two sizes, minimum and maximum, for MIN_SIZE_TRAIN_SAMPLING range."
        )
    crop = cfg.INPUT.CROP_BRANCH
    if not crop.RESIZE or min(crop.RESIZE) < 1:
        raise refuse("INPUT.CROP_BRANCH.RESIZE", "expected one or more sizes of at least 1 pixel.")
    if len(crop.SIZE) != 2 or not 1 <= crop.SIZE[0] <= crop.SIZE[1]:
        raise refuse("INPUT.CROP_BRANCH.SIZE", "expected two sizes in pixels, minimum and maximum.")


def _check_augmentations(cfg: CfgNode, refuse: _Refuse) -> None:
    for name in ("LARGE_SCALE_JITTER", "MOSAIC", "COPY_PASTE"):
        scales = cfg.INPUT[name].SCALE
        if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
            raise refuse(f"INPUT.{name}.SCALE", "expected two factors above 0, minimum and maximum.")
    size = cfg.INPUT.LARGE_SCALE_JITTER.SIZE
    if len(size) != 2 or min(size) < 1:
        raise refuse("INPUT.LARGE_SCALE_JITTER.SIZE", "expected a height and a width of at least 1 pixel.")
    for name in ("MOSAIC", "COPY_PASTE"):
        key = f"INPUT.{name}.PROBABILITY"
        if _get(cfg, key) > 1:
            raise refuse(key, "expected a probability, 0 to 1.")
        if _get(cfg, key) and is_panoptic(cfg):
            raise refuse(
                key, "expected 0.0. This augmentation does not support label maps, which PanopticFPN is trained on."
            )
    if cfg.INPUT.COPY_PASTE.PROBABILITY and not cfg.MODEL.MASK_ON:
        raise refuse("INPUT.COPY_PASTE.PROBABILITY", "needs MODEL.MASK_ON, because objects are cut out by their masks.")


def _check_semantic(cfg: CfgNode, refuse: _Refuse) -> None:
    scales = cfg.INPUT.SCALE_RANGE
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise refuse("INPUT.SCALE_RANGE", "expected two factors above 0, minimum and maximum.")
    if cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE not in range(256):
        raise refuse("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "expected 0 to 255, because label maps have 8 bits.")
    is_semantic = is_segmentor(cfg)
    for key, off in (_DETECTION_INPUT if is_semantic else _SEMANTIC_INPUT).items():
        if _get(cfg, key) != off:
            supports = "does not support" if is_semantic else "alone supports"
            raise refuse(key, f"expected {off!r}. MODEL.META_ARCHITECTURE {SEGMENTOR} {supports} this key.")


def _check_anchors(cfg: CfgNode, refuse: _Refuse) -> None:
    if is_segmentor(cfg):
        return
    levels_key = anchor_levels_key(cfg)
    levels = len(_get(cfg, levels_key))
    for name in ("SIZES", "ASPECT_RATIOS"):
        key = f"MODEL.ANCHOR_GENERATOR.{name}"
        rows = _get(cfg, key)
        if len(rows) not in (1, levels):
            raise refuse(key, f"expected 1 list or {levels}, one for each level of {levels_key}, got {len(rows)}.")
        if not all(row and min(row) > 0 for row in rows):
            raise refuse(key, "expected lists of numbers above 0.")


def _get(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for name in key.split("."):
        node = node[name]
    return node


def _as_list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)
