"""Write a config of Semantic FPN for inspected label maps, with a comment that explains each setting."""

from __future__ import annotations

from pathlib import Path

from pvt_det.inspection import config_text
from pvt_det.inspection.config_file import save_config
from pvt_det.inspection.config_text import scalar
from pvt_det.inspection.plan import Plan
from pvt_det.inspection.semantic.inspection import LabelInspection
from pvt_det.inspection.semantic.recommend import DIVISOR, EVALUATIONS, LabelSettings
from pvt_det.utils.text import counted

_FILES = ("semantic_fpn", "rcnn_{}")


def write_label_config(
    path: Path, plan: Plan, settings: LabelSettings, train: LabelInspection, val: LabelInspection | None
) -> None:
    """Write a config that `pvt-det train` can train with unchanged, and check that it loads.

    Args:
        path: The config file to write. It must not exist yet.
        plan: What to train, on which device and from which weights.
        settings: The recommended settings and their reasons.
        train: Inspection of the training data.
        val: Inspection of the validation data. None writes a config without evaluation.

    Raises:
        ConfigError: The file exists, does not end in .yaml or cannot be written.
    """
    save_config(
        path,
        _head(plan, train),
        _datasets(plan, train, val),
        _model(plan, train),
        _input(settings),
        _solver(plan, settings),
        _test(settings, path.stem, has_val=val is not None),
    )


def _head(plan: Plan, train: LabelInspection) -> list[str]:
    classes = counted(len(train.scheme.classes), "class", "classes")
    data = f"{counted(len(train.files), 'image')} with label maps of {classes}"
    return config_text.head(plan, "Semantic FPN", data, _FILES)


def _datasets(plan: Plan, train: LabelInspection, val: LabelInspection | None) -> list[str]:
    parts = {"TRAIN": train} if val is None else {"TRAIN": train, "VAL": val}
    paths = {part: {"IMAGES": found.image_root, "LABELS": found.label_root} for part, found in parts.items()}
    return config_text.datasets(plan, paths, "LABEL_NAMES", train.scheme.class_names)


def _model(plan: Plan, train: LabelInspection) -> list[str]:
    scheme = train.scheme
    number = len(scheme.class_names)
    note = f", of which {scheme.ignore_value} is void" if scheme.ignore_value < number else ""
    if plan.weights:
        start = [f"  WEIGHTS: {scalar(plan.weights)}", *plan.backbone.settings(pretrained=True)]
    else:
        start = [
            f"  # Random weights: {plan.weights_reason}. Expect a low IoU. ImageNet weights need much less data.",
            '  WEIGHTS: ""',
            *plan.backbone.settings(pretrained=False),
            # small.yaml, the base config for CPUs, already sets it.
            *([] if plan.on_cpu else ["  FPN: {NORM: GN}  # normalized layers learn faster from random weights"]),
        ]
    return [
        "MODEL:",
        *start,
        "  SEM_SEG_HEAD:",
        f"    NUM_CLASSES: {number}  # values 0 to {number - 1}{note}",
        f"    IGNORE_VALUE: {scheme.ignore_value}  # void: {scheme.reason}",
    ]


def _input(settings: LabelSettings) -> list[str]:
    low, high = settings.scales
    is_limited = settings.single_class < 1
    area = (
        f"    SINGLE_CATEGORY_MAX_AREA: {settings.single_class:g}  # draw a crop again if one class fills more of it"
        if is_limited
        else "    SINGLE_CATEGORY_MAX_AREA: 1.0  # no limit, because one class fills most of the images"
    )
    return [
        "INPUT:",
        f"  # Short side {settings.short_side}: {settings.short_side_reason}.",
        f"  MIN_SIZE_TRAIN: [{settings.short_side}]",
        f"  MAX_SIZE_TRAIN: {settings.longest}  # long enough for nearly all images at this short side",
        f"  SCALE_RANGE: [{low:g}, {high:g}]  # random factor of both, as in the ADE20K recipe",
        "  CROP:",
        "    ENABLED: True",
        "    TYPE: absolute",
        f"    SIZE: [{settings.crop}, {settings.crop}]  # {settings.crop_reason}",
        area,
        "  RANDOM_FLIP: horizontal  # none if left and right are different classes",
        "  COLOR_AUG_SSD: True  # changes brightness, contrast, saturation and hue, as in the ADE20K recipe",
        f"  MIN_SIZE_TEST: {settings.short_side}",
        f"  MAX_SIZE_TEST: {settings.longest}",
        f"  SIZE_DIVISOR_TEST: {DIVISOR}",
    ]


def _solver(plan: Plan, settings: LabelSettings) -> list[str]:
    return [
        "SOLVER:",
        *config_text.length(settings),
        "  LR_SCHEDULER_NAME: WarmupPolyLR",
        f"  WARMUP_ITERS: {min(500, max(1, settings.iterations // 14))}",
        f"  CHECKPOINT_PERIOD: {settings.iterations // EVALUATIONS}",
        *config_text.optimizer(plan),
    ]


def _test(settings: LabelSettings, name: str, *, has_val: bool) -> list[str]:
    lines = ["TEST:", f"  EVAL_PERIOD: {settings.iterations // EVALUATIONS}"] if has_val else []
    return [*lines, f"OUTPUT_DIR: {scalar('output/' + name)}"]
