"""Check a complete config: each value by the table of keys, and the keys that must agree."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode

from pvt_det.config.architecture import (
    SEGMENTOR,
    anchor_levels_key,
    feature_strides,
    has_adaptive_anchors,
    has_fpn,
    has_label_maps,
    head_key,
    is_one_stage,
    is_panoptic,
    is_query_detector,
    is_rcnn,
    is_segmentor,
    trunk_section,
    trunk_strides,
)
from pvt_det.config.rows import Row
from pvt_det.config.rules import shown
from pvt_det.config.table import TABLE, get_value, require_valid
from pvt_det.errors import ConfigError

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
# Groups of Detectron2's GroupNorm.
_GROUPS = 32


def validate_config(cfg: CfgNode, where: str = "config", *, training: bool = True) -> None:
    """Check every value by the table of keys, and the keys that must agree with each other.

    Args:
        cfg: A complete config, with Detectron2's keys and this package's.
        where: Name of the config file, for messages.
        training: Whether the config is for training. If it is not, the SOLVER section is not checked, so that runs of
            earlier versions with a schedule that is refused now can still be used.

    Raises:
        ConfigError: A value is invalid. The message names the key, its value, and what was expected.
    """
    rows = [row for row in TABLE.values() if training or not row.key.startswith("SOLVER.")]
    for row in rows:
        require_valid(row.key, get_value(cfg, row.key), where)
    check = _Check(cfg, where)
    _check_limits(check, rows)
    if training:
        _check_solver(check)
        _check_sampler(check)
    _check_sizes(check)
    _check_augmentations(check)
    if trunk_section(cfg):  # the feature maps of other backbones are not known
        _check_trunk(check)
        _check_feature_maps(check)
    if is_query_detector(cfg):
        _check_query_detector(check)
    elif not is_segmentor(cfg):
        _check_anchors(check)
    if is_rcnn(cfg):
        _check_roi_heads(check)
    _check_norms(check)


@dataclass(frozen=True)
class _Check:
    """A config to check."""

    cfg: CfgNode
    where: str

    def require(self, is_valid: bool, key: str, expected: str) -> None:
        """Raise an error that names a key and its value, unless the value is valid."""
        if not is_valid:
            raise ConfigError(f"{self.where}: {key} = {shown(get_value(self.cfg, key))}: expected {expected}")


def _check_limits(check: _Check, rows: Sequence[Row]) -> None:
    for row in rows:
        limit = row.limit
        if limit is not None and limit.applies(check.cfg):
            other = get_value(check.cfg, limit.key)
            is_valid = limit.holds(get_value(check.cfg, row.key), other)
            check.require(is_valid, row.key, f"{limit.expected} {limit.key}, {shown(other)}. {limit.reason}".rstrip())


def _check_solver(check: _Check) -> None:
    solver = check.cfg.SOLVER
    has_momentum = solver.OPTIMIZER != "sgd" or solver.MOMENTUM > 0
    check.require(has_momentum or not solver.NESTEROV, "SOLVER.NESTEROV", "False if SOLVER.MOMENTUM is 0.")


def _check_sampler(check: _Check) -> None:
    loader, key = check.cfg.DATALOADER, "DATALOADER.SAMPLER_TRAIN"
    if loader.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return
    expected = f"TrainingSampler. The other repeats images by their objects, which {SEGMENTOR} does not have."
    check.require(not is_segmentor(check.cfg), key, expected)
    expected = f"a share above 0, such as 0.01, for {key} {loader.SAMPLER_TRAIN}. With 0, no class is rare."
    check.require(loader.REPEAT_THRESHOLD > 0, "DATALOADER.REPEAT_THRESHOLD", expected)


def _check_sizes(check: _Check) -> None:
    inputs = check.cfg.INPUT
    sizes, crop = inputs.MIN_SIZE_TRAIN, inputs.CROP
    if inputs.MIN_SIZE_TRAIN_SAMPLING == "range":
        expected = "two sizes, minimum and maximum, for MIN_SIZE_TRAIN_SAMPLING range."
        check.require(len(sizes) == 2 and sizes[0] <= sizes[1], "INPUT.MIN_SIZE_TRAIN", expected)
    if crop.TYPE.startswith("relative"):
        expected = f"fractions of the sides, above 0 and at most 1, for INPUT.CROP.TYPE {crop.TYPE}."
        check.require(max(crop.SIZE) <= 1, "INPUT.CROP.SIZE", expected)
    else:
        is_whole = all(side == int(side) for side in crop.SIZE)
        check.require(is_whole, "INPUT.CROP.SIZE", f"whole pixels, 1 or more, for INPUT.CROP.TYPE {crop.TYPE}.")
    if crop.TYPE == "absolute_range":
        check.require(crop.SIZE[0] <= crop.SIZE[1], "INPUT.CROP.SIZE", "the minimum and the maximum side.")


def _check_augmentations(check: _Check) -> None:
    cfg = check.cfg
    for name in ("MOSAIC", "COPY_PASTE"):
        check.require(
            not (cfg.INPUT[name].PROBABILITY and is_panoptic(cfg)),
            f"INPUT.{name}.PROBABILITY",
            "0.0. This augmentation does not support label maps, which PanopticFPN is trained on.",
        )
    check.require(
        cfg.MODEL.MASK_ON or not cfg.INPUT.COPY_PASTE.PROBABILITY,
        "INPUT.COPY_PASTE.PROBABILITY",
        "0.0 without MODEL.MASK_ON, because objects are cut out by their masks.",
    )
    is_semantic = is_segmentor(cfg)
    for key, off in (_DETECTION_INPUT if is_semantic else _SEMANTIC_INPUT).items():
        supports = "does not support" if is_semantic else "alone supports"
        expected = f"{off!r}. MODEL.META_ARCHITECTURE {SEGMENTOR} {supports} this key."
        check.require(get_value(cfg, key) == off, key, expected)


def _check_trunk(check: _Check) -> None:
    cfg, resnet = check.cfg, check.cfg.MODEL.RESNETS
    is_named = bool(cfg.MODEL.TIMM.NAME)
    check.require(is_named or trunk_section(cfg) != "TIMM", "MODEL.TIMM.NAME", "the name of a model of timm.")
    if trunk_section(cfg) != "RESNETS" or resnet.DEPTH > 34:
        return
    shallow = f"for MODEL.RESNETS.DEPTH {resnet.DEPTH}."
    check.require(resnet.RES2_OUT_CHANNELS == 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", f"64 {shallow}")
    check.require(resnet.NUM_GROUPS == 1, "MODEL.RESNETS.NUM_GROUPS", f"1 {shallow}")
    check.require(resnet.RES5_DILATION == 1, "MODEL.RESNETS.RES5_DILATION", f"1 {shallow}")
    check.require(
        not any(resnet.DEFORM_ON_PER_STAGE), "MODEL.RESNETS.DEFORM_ON_PER_STAGE", f"False in all stages {shallow}"
    )


def _check_feature_maps(check: _Check) -> None:
    """Check the lists of feature maps, without building the model."""
    cfg = check.cfg
    if has_fpn(cfg):
        strides, section = trunk_strides(cfg), trunk_section(cfg)
        last = "res5" if section == "RESNETS" else "stage4"
        key = "MODEL.FPN.IN_FEATURES"
        _check_names(check, key, strides, f"MODEL.{section}.OUT_FEATURES")
        names = cfg.MODEL.FPN.IN_FEATURES
        check.require(names[-1] == last, key, f"{last} at the end, from which the next level of the FPN is computed.")
        check.require(
            _are_neighbors([strides[name] for name in names]), key, "feature maps of which each has half the size."
        )
    strides = feature_strides(cfg)
    source = f"the maps of MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}"
    if is_one_stage(cfg):
        _check_names(check, anchor_levels_key(cfg), strides, source)
    if is_query_detector(cfg):
        _check_names(check, f"MODEL.{head_key(cfg)}.IN_FEATURES", strides, source)
    if is_rcnn(cfg) or cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        _check_names(check, "MODEL.RPN.IN_FEATURES", strides, source)
    if is_rcnn(cfg):
        key = "MODEL.ROI_HEADS.IN_FEATURES"
        _check_names(check, key, strides, source)
        used = [strides[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
        check.require(_are_neighbors(used), key, "feature maps of which each has half the size.")
    if has_label_maps(cfg):
        _check_names(check, "MODEL.SEM_SEG_HEAD.IN_FEATURES", strides, source)
        finest = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES[0]
        check.require(
            strides[finest] >= cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
            "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
            f"at most {strides[finest]}, the stride of {finest}.",
        )


def _check_names(check: _Check, key: str, strides: dict[str, int], source: str) -> None:
    """Check that a key lists feature maps from fine to coarse."""
    names = get_value(check.cfg, key)
    in_order = [name for name in strides if name in names]
    expected = f"one or more of {', '.join(strides)}, each once, in this order, of {source}."
    check.require(in_order == list(names) != [], key, expected)


def _are_neighbors(strides: Sequence[int]) -> bool:
    return all(coarse == 2 * fine for fine, coarse in itertools.pairwise(strides))


def _check_anchors(check: _Check) -> None:
    cfg = check.cfg
    levels_key = anchor_levels_key(cfg)
    levels = len(get_value(cfg, levels_key))
    for name in ("SIZES", "ASPECT_RATIOS"):
        key = f"MODEL.ANCHOR_GENERATOR.{name}"
        rows = get_value(cfg, key)
        check.require(
            len(rows) in (1, levels), key, f"1 list or {levels}, one for each level of {levels_key}, got {len(rows)}."
        )
        check.require(len({len(row) for row in rows}) == 1, key, "lists of the same length.")
        if has_adaptive_anchors(cfg):
            name = cfg.MODEL.META_ARCHITECTURE
            check.require(len(rows[0]) == 1, key, f"lists of one value: {name} has one anchor per position.")
    smallest = [min(row) for row in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
    check.require(
        smallest == sorted(smallest), "MODEL.ANCHOR_GENERATOR.SIZES", f"sizes that do not fall along {levels_key}."
    )


def _check_query_detector(check: _Check) -> None:
    cfg = check.cfg
    name, key = cfg.MODEL.META_ARCHITECTURE, f"MODEL.{head_key(cfg)}"
    check.require(not cfg.MODEL.MASK_ON, "MODEL.MASK_ON", f"False for MODEL.META_ARCHITECTURE {name}.")
    if head_key(cfg) != "SPARSE_RCNN":
        check.require(cfg.MODEL[head_key(cfg)].HIDDEN_DIM % 4 == 0, f"{key}.HIDDEN_DIM", "a multiple of 4.")
    features = cfg.MODEL[head_key(cfg)].IN_FEATURES
    if head_key(cfg) == "DETR":
        check.require(len(features) == 1, f"{key}.IN_FEATURES", "one feature map.")
    if head_key(cfg) == "RT_DETR":
        check.require(len(features) == 3, f"{key}.IN_FEATURES", "three feature maps.")
    if trunk_section(cfg):
        is_pyramid = _are_neighbors([feature_strides(cfg)[name] for name in features])
        check.require(is_pyramid, f"{key}.IN_FEATURES", "feature maps of which each has half the size.")


def _check_roi_heads(check: _Check) -> None:
    cfg = check.cfg
    name = cfg.MODEL.ROI_HEADS.NAME
    checks: dict[str, Callable[[_Check], None]] = {
        "Res5ROIHeads": _check_res5,
        "StandardROIHeads": _check_box_head,
        "PVTROIHeads": _check_box_head,
        "CascadeROIHeads": _check_cascade,
        "PVTCascadeROIHeads": _check_cascade,
    }
    if name in checks:
        checks[name](check)
    if is_panoptic(cfg):
        check.require(cfg.MODEL.MASK_ON, "MODEL.MASK_ON", "True for MODEL.META_ARCHITECTURE PanopticFPN.")
        check.require(
            "Cascade" not in name or cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT == 1.0,
            "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
            f"1.0 for MODEL.ROI_HEADS.NAME {name}.",
        )


def _check_res5(check: _Check) -> None:
    heads, resnet = check.cfg.MODEL.ROI_HEADS, check.cfg.MODEL.RESNETS
    check.require(
        check.cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone" and list(heads.IN_FEATURES) == ["res4"],
        "MODEL.ROI_HEADS.NAME",
        "other heads, because these need MODEL.BACKBONE.NAME build_resnet_backbone and IN_FEATURES ['res4'].",
    )
    check.require(not resnet.DEFORM_ON_PER_STAGE[-1], "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "False for res5.")
    check.require(resnet.DEPTH > 34, "MODEL.RESNETS.DEPTH", "50 or more for MODEL.ROI_HEADS.NAME Res5ROIHeads.")


def _check_box_head(check: _Check) -> None:
    heads, box = check.cfg.MODEL.ROI_HEADS, check.cfg.MODEL.ROI_BOX_HEAD
    check.require(box.NAME != "", "MODEL.ROI_BOX_HEAD.NAME", f"a box head for MODEL.ROI_HEADS.NAME {heads.NAME}.")
    has_layers = box.NAME != "FastRCNNConvFCHead" or box.NUM_FC + box.NUM_CONV > 0
    check.require(has_layers, "MODEL.ROI_BOX_HEAD.NUM_FC", "1 or more if NUM_CONV is 0.")
    check.require(
        not heads.ALLOW_LOW_QUALITY_MATCHES or len(heads.IOU_THRESHOLDS) == 1,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS",
        "a single threshold with ALLOW_LOW_QUALITY_MATCHES.",
    )


def _check_cascade(check: _Check) -> None:
    _check_box_head(check)
    heads = check.cfg.MODEL.ROI_HEADS
    suffix = f"for MODEL.ROI_HEADS.NAME {heads.NAME}."
    is_plain = not heads.ALLOW_LOW_QUALITY_MATCHES
    check.require(is_plain, "MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES", f"False {suffix}")
    box = check.cfg.MODEL.ROI_BOX_HEAD
    is_possible = heads.NAME != "CascadeROIHeads" or box.CLS_AGNOSTIC_BBOX_REG
    check.require(is_possible, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", f"True {suffix}")
    check.require(not box.TRAIN_ON_PRED_BOXES, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", f"False {suffix}")
    ious = check.cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS
    check.require(
        list(heads.IOU_THRESHOLDS) == [ious[0]],
        "MODEL.ROI_HEADS.IOU_THRESHOLDS",
        f"[{ious[0]}], the first value of MODEL.ROI_BOX_CASCADE_HEAD.IOUS, {suffix}",
    )


def _check_norms(check: _Check) -> None:
    """Check the channels of GroupNorms, where the model has them."""
    model = check.cfg.MODEL
    box, mask, resnet = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD, model.RESNETS
    two_stage = is_rcnn(check.cfg)
    has_resnet = trunk_section(check.cfg) == "RESNETS"
    used = [
        (has_fpn(check.cfg), model.FPN.NORM, "MODEL.FPN.OUT_CHANNELS"),
        (has_fpn(check.cfg), _head_norm(check.cfg), "MODEL.FPN.OUT_CHANNELS"),
        (two_stage and box.NUM_CONV > 0, box.NORM, "MODEL.ROI_BOX_HEAD.CONV_DIM"),
        (two_stage and model.MASK_ON and mask.NUM_CONV > 0, mask.NORM, "MODEL.ROI_MASK_HEAD.CONV_DIM"),
        (has_label_maps(check.cfg), model.SEM_SEG_HEAD.NORM, "MODEL.SEM_SEG_HEAD.CONVS_DIM"),
        (has_resnet, resnet.NORM, "MODEL.RESNETS.STEM_OUT_CHANNELS"),
        (has_resnet, resnet.NORM, "MODEL.RESNETS.RES2_OUT_CHANNELS"),
        (has_resnet and resnet.DEPTH > 34 and resnet.NUM_GROUPS == 1, resnet.NORM, "MODEL.RESNETS.WIDTH_PER_GROUP"),
    ]
    for is_used, norm, key in used:
        is_valid = not is_used or norm != "GN" or get_value(check.cfg, key) % _GROUPS == 0
        check.require(is_valid, key, f"a multiple of {_GROUPS}, the number of groups of GroupNorm (GN).")


def _head_norm(cfg: CfgNode) -> str:
    """Return the normalization of a one-stage detector's head, or "" for other models."""
    return str(cfg.MODEL[head_key(cfg)].NORM) if is_one_stage(cfg) else ""
