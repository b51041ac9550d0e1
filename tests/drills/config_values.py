"""Absurd config values are refused with a message, and no value that is accepted ends in a traceback."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from pvt_det.config import load_config
from pvt_det.config.architecture import HEADS
from pvt_det.config.table import TABLE, get_value
from pvt_det.data.mapper import build_augmentations
from pvt_det.errors import ConfigError
from pvt_det.solver.build import build_gradient_clipper, build_lr_scheduler, build_optimizer
from tests.drills import tiny
from tests.drills.outcome import Outcome

_CONFIGS = (
    "retinanet_pvt_tiny",
    "retinanet_R_18",
    "atss_pvt_v2_b2_3x",
    "gfl_pvt_v2_b2_3x",
    "mask_rcnn_pvt_tiny",
    "mask_rcnn_R_18",
    "cascade_mask_rcnn_pvt_small",
    "semantic_fpn_pvt_tiny",
    "shapes/panoptic_fpn_pvt_tiny",
)
_SETTINGS = {key: value for key, value in tiny.SETTINGS.items() if not key.startswith("SOLVER.STEPS")} | {
    **{f"MODEL.{head}.NUM_CLASSES": 3 for head in HEADS},
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
    "MODEL.FPN.OUT_CHANNELS": 64,  # GroupNorm refuses a single value per group, on maps of one position
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MAX_SIZE_TEST": 128,
    "SOLVER.MAX_ITER": 30,
    "SOLVER.STEPS": (10, 20),
}

# Values that look absurd but mean something, by the change that makes them. This list is written by hand, so that a
# wrong row of the table is found: every other value that is accepted is a failure.
_ANY_TEXT = {
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    *(f"DATASETS.{name}" for name in ("TRAIN_JSON", "TRAIN_IMAGES", "TRAIN_LABELS")),
    *(f"DATASETS.{name}" for name in ("VAL_JSON", "VAL_IMAGES", "VAL_LABELS", "VAL_PANOPTIC_JSON")),
}
_DATA_NAMES = {"DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.LABEL_NAMES", "DATASETS.CLASS_NAMES"}
_NORMS = {f"MODEL.{section}.NORM" for section in ("FPN", "RETINANET", "ATSS", "GFL", "RESNETS", "SEM_SEG_HEAD")}
_NORMS |= {f"MODEL.{section}.NORM" for section in ("ROI_BOX_HEAD", "ROI_MASK_HEAD")}
_MEANINGFUL: dict[str, set[str]] = {
    "zero": {
        "DATALOADER.NUM_WORKERS",  # the main process reads
        "DATALOADER.REPEAT_THRESHOLD",  # no class is rare
        "INPUT.COPY_PASTE.PROBABILITY",
        "INPUT.MOSAIC.PROBABILITY",
        "INPUT.MIN_SIZE_TEST",  # keep the size
        "MODEL.ANCHOR_GENERATOR.OFFSET",
        "MODEL.ATSS.CENTERNESS_LOSS_WEIGHT",
        "MODEL.ATSS.FOCAL_LOSS_GAMMA",  # cross entropy
        "MODEL.GFL.DISTRIBUTION_LOSS_WEIGHT",
        "MODEL.GFL.QUALITY_FOCAL_BETA",  # cross entropy
        *(f"MODEL.{head}.{name}" for head in ("ATSS", "GFL") for name in ("BOX_LOSS_WEIGHT", "SCORE_THRESH_TEST")),
        "MODEL.BACKBONE.FREEZE_AT",
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
        "MODEL.PVT.DROP_PATH_RATE",
        "MODEL.PVT.FROZEN_STAGES",
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA",  # cross entropy
        "MODEL.RETINANET.SCORE_THRESH_TEST",
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",  # L1
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT",
        "MODEL.ROI_BOX_HEAD.NUM_CONV",
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",  # adapted
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "MODEL.ROI_MASK_HEAD.NUM_CONV",
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO",
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT",
        "MODEL.RPN.BOUNDARY_THRESH",
        "MODEL.RPN.LOSS_WEIGHT",
        "MODEL.RPN.SMOOTH_L1_BETA",
        "MODEL.SEM_SEG_HEAD.DROPOUT",
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
        "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        "SEED",
        "SOLVER.BASE_LR_END",
        "SOLVER.EMA.DECAY",  # the average is the last weights
        "SOLVER.MAX_NONFINITE_STEPS",
        "SOLVER.MOMENTUM",
        "SOLVER.REFERENCE_WORLD_SIZE",
        "SOLVER.WARMUP_FACTOR",
        "SOLVER.WARMUP_ITERS",
        "SOLVER.WEIGHT_DECAY",
        "SOLVER.WEIGHT_DECAY_BIAS",
        "SOLVER.WEIGHT_DECAY_NORM",
        "TEST.EARLY_STOP_PATIENCE",
        "TEST.EVAL_PERIOD",
        "VIS_PERIOD",
    },
    "zero first": {"MODEL.PIXEL_MEAN", "MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS", "SOLVER.BETAS"},
    "minus one": {"SEED", "MODEL.RPN.BOUNDARY_THRESH"},
    "null": {"SOLVER.WEIGHT_DECAY_BIAS"},
    "infinite": {"SOLVER.CLIP_GRADIENTS.NORM_TYPE"},
    "empty text": {*_ANY_TEXT, *_NORMS, "MODEL.PVT.COMPILE", "TEST.BEST_METRIC"} - {"OUTPUT_DIR"},
    "unknown": _ANY_TEXT,
    "unknown first": _DATA_NAMES,
    "empty list": {*_DATA_NAMES, "DATASETS.TRAIN_WEIGHTS", "MODEL.PVT.CHECKPOINT_STAGES", "SOLVER.STEPS"},
    "reversed": {
        "INPUT.CROP_BRANCH.RESIZE",
        "MODEL.PIXEL_MEAN",  # BGR
        "MODEL.PIXEL_STD",
        "MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS",
        "SOLVER.BETAS",
        "TEST.AUG.MIN_SIZES",
        *(f"MODEL.{section}.BBOX_REG_WEIGHTS" for section in ("ATSS", "ROI_BOX_HEAD", "ROI_BOX_CASCADE_HEAD")),
    },
    "reversed inside": {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.ANCHOR_GENERATOR.SIZES"}
    | {"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"},
    "doubled": {"INPUT.CROP_BRANCH.RESIZE", "INPUT.MIN_SIZE_TRAIN", "MODEL.RPN.CONV_DIMS", "TEST.AUG.MIN_SIZES"}
    | _DATA_NAMES,
    "doubled inside": {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"},
    "shortened": {
        "DATASETS.TEST",
        "DATASETS.TRAIN",
        "INPUT.CROP_BRANCH.RESIZE",
        "MODEL.ATSS.IN_FEATURES",
        "MODEL.GFL.IN_FEATURES",
        "MODEL.PVT.OUT_FEATURES",
        "MODEL.RESNETS.OUT_FEATURES",
        "MODEL.RETINANET.IN_FEATURES",
        "MODEL.ROI_HEADS.IN_FEATURES",
        "MODEL.RPN.IN_FEATURES",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES",
        "SOLVER.STEPS",
        "TEST.AUG.MIN_SIZES",
    },
    "shortened inside": {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.ANCHOR_GENERATOR.SIZES"},
}
_SCALARS: dict[str, Any] = {
    "minus one": -1,
    "negative": -7,
    "zero": 0,
    "huge": 10**12,
    "too large for 64 bits": 2**70,
    "not a number": math.nan,
    "infinite": math.inf,
    "unknown": "XX",
    "null": None,
    "empty list": [],
    "section": {"A": 1},
}


def run_config_values(count: int, *, seed: int = 0) -> Outcome:
    """Load configs with absurd values for every key of the table, and build models with those that are accepted.

    Args:
        count: Largest number of values. If there are more, that many are drawn.
        seed: Seed of the draw.
    """
    outcome = Outcome("config-values")
    paths = [Path(f"configs/{name}.yaml") for name in _CONFIGS]
    cases = list(_cases(paths))
    drawn = random.Random(seed).sample(cases, count) if count < len(cases) else cases
    verdicts: Counter[str] = Counter()
    for path, key, change, value, is_built in drawn:
        verdict = _verdict(path, key, change, value, is_built)
        outcome.tried += 1
        verdicts[verdict if verdict in ("refused", "accepted", "accepted and built") else "failed"] += 1
        if verdict not in ("refused", "accepted", "accepted and built"):
            outcome.failures.append(f"{path.stem} {key} {change}, {value!r}: {verdict}"[:400])
    outcome.facts["keys"] = str(len({key for _, key, *_ in drawn}))
    outcome.facts["values"] = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    return outcome


def _words(key: str = "", value: Any = None) -> list[Any]:
    words = [word for pair in _SETTINGS.items() for word in pair]
    return [*words, key, value] if key else words


@cache
def _base(path: Path) -> CfgNode:
    return load_config(path, _words())


def _cases(paths: list[Path]) -> Iterator[tuple[Path, str, str, Any, bool]]:
    """Yield each absurd value of each key, with each config whose builders read the key, or else with the first."""
    read = {path: keys_read(_base(path)) for path in paths}
    for path in paths:
        unread = set(TABLE) - set().union(*read.values()) if path == paths[0] else set()
        for key in TABLE:
            if key in read[path] | unread:
                for change, value in _absurd(get_value(_base(path), key)):
                    yield path, key, change, value, key in read[path]


def keys_read(cfg: CfgNode) -> set[str]:
    """Return the keys that are read while a model is built.

    Args:
        cfg: A complete config.
    """
    read: set[str] = set()
    cfg = cfg.clone()
    names = {id(cfg): ""}
    get = CfgNode.__getattr__

    def recorded(node: CfgNode, name: str) -> Any:
        value = get(node, name)
        if id(node) in names:
            key = f"{names[id(node)]}{name}"
            if isinstance(value, CfgNode):
                names[id(value)] = f"{key}."
            else:
                read.add(key)
        return value

    cfg.MODEL.DEVICE = "meta"
    try:
        CfgNode.__getattr__ = recorded
        with torch.device("meta"):
            build_model(cfg)
    finally:
        CfgNode.__getattr__ = get
    return read


def _absurd(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield changes of a value, each with its name."""
    yield from ((change, scalar) for change, scalar in _SCALARS.items() if not _equal(scalar, value))
    if isinstance(value, str):
        yield "empty text", ""
    if not isinstance(value, list | tuple):
        return
    if not value:
        yield "unknown first", ["XX"]
        return
    items = list(value)
    yield "nested", [items]
    yield "doubled", items * 2
    yield "shortened", items[:-1] or ["XX"]
    if items[::-1] != items:
        yield "reversed", items[::-1]
    for change, first in _absurd(items[0]):
        if isinstance(items[0], list | tuple):
            yield f"{change.removesuffix(' inside')} inside", [first, *items[1:]]
        elif not _equal(first, items[0]):
            yield f"{change} first", [first, *items[1:]]


def _equal(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def _verdict(path: Path, key: str, change: str, value: Any, is_built: bool) -> str:
    try:
        cfg = load_config(path, _words(key, value))
    except ConfigError as error:
        message = str(error)
        is_clear = key.rpartition(".")[2] in message and "expected" in message.lower()
        return "refused" if is_clear else f"unclear message: {message}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    if get_value(cfg, key) == get_value(_base(path), key):
        return "accepted"  # an equal value of another type
    if key not in _MEANINGFUL.get(change, set()):
        return "accepted, but means nothing"
    try:
        return _build(cfg, key, is_built)
    except ConfigError:
        return "refused"
    except Exception as error:
        return f"traceback of the builder: {type(error).__name__}: {error}"


def _build(cfg: CfgNode, key: str, is_built: bool) -> str:
    """Build what the key configures, and use it once."""
    if key.startswith("INPUT."):
        for is_train in (True, False):
            image = T.AugInput(np.zeros((48, 64, 3), np.uint8), sem_seg=np.zeros((48, 64), np.uint8))
            T.AugmentationList(build_augmentations(cfg, is_train=is_train))(image)
        return "accepted and built"
    if key.startswith("SOLVER."):
        optimizer = build_optimizer(cfg, nn.Linear(2, 2))
        build_lr_scheduler(cfg, optimizer)
        build_gradient_clipper(cfg)
        return "accepted and built"
    if not is_built:
        return "accepted"
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        losses = model([_record(cfg)])
        total = sum(losses.values())
        if isinstance(total, torch.Tensor) and not math.isfinite(total.item()):
            return f"the losses are not finite: {losses}"
        with torch.no_grad():
            model.eval()([_record(cfg)])
    return "accepted and built"


def _record(cfg: CfgNode) -> dict[str, Any]:
    """Return a training record with one object."""
    side = tiny.SIDE
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, 8:24, 8:40] = True
    instances = Instances((side, side), gt_boxes=Boxes([[8.0, 8.0, 40.0, 24.0]]), gt_classes=torch.tensor([1]))
    instances.gt_masks = BitMasks(mask)
    return {
        "image": torch.randint(0, 255, (3, side, side), dtype=torch.uint8),
        "height": side,
        "width": side,
        "instances": instances,
        "sem_seg": torch.ones(side, side, dtype=torch.int64),
    }
