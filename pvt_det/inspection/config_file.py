"""Write a training config for an inspected data set, with a comment that explains each setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pvt_det.config import load_config
from pvt_det.inspection import config_text
from pvt_det.inspection.config_text import flow_list as _list
from pvt_det.inspection.config_text import scalar as _scalar
from pvt_det.inspection.inspect import Inspection
from pvt_det.inspection.plan import Plan
from pvt_det.inspection.recommend import Settings
from pvt_det.inspection.request import check_place
from pvt_det.inspection.statistics import Statistics
from pvt_det.utils.files import write_atomically
from pvt_det.utils.text import counted

# Base configs of each task: the head, and the backbone of a family.
_FILES = {
    "retinanet": ("retinanet", "retinanet_{}"),
    "atss": ("atss", "retinanet_{}"),
    "gfl": ("gfl", "retinanet_{}"),
    "mask-rcnn": ("mask_rcnn", "rcnn_{}"),
}
_TASK_NAMES = {"retinanet": "RetinaNet", "atss": "ATSS", "gfl": "GFL", "mask-rcnn": "Mask R-CNN"}
# Section of MODEL with the number of classes.
_HEADS = {"retinanet": "RETINANET", "atss": "ATSS", "gfl": "GFL", "mask-rcnn": "ROI_HEADS"}
# Training from random weights works on the blood cells, whose rarest class has about 300 objects. COCO has 10,000 per
# class.
_FEW_OBJECTS = 200


def write_config(path: Path, plan: Plan, settings: Settings, train: Inspection, val: Inspection | None) -> None:
    """Write a config that `tools/train_net.py` can train with unchanged, and check that it loads.

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
        _model(plan, settings, train.statistics),
        _input(settings),
        _solver(plan, settings),
        _test(settings, path.stem, has_val=val is not None),
    )


def save_config(path: Path, *parts: Sequence[str]) -> None:
    """Write a config, and check that it loads.

    Args:
        path: The config file to write. It must not exist yet.
        parts: The lines of each part.

    Raises:
        ConfigError: The file exists, does not end in .yaml or cannot be written.
    """
    check_place(path)
    write_atomically(path, "\n".join(line for part in parts for line in part) + "\n")
    load_config(path)


def _head(plan: Plan, train: Inspection) -> list[str]:
    s = train.statistics
    data = f"{counted(s.images, 'image')} with {counted(s.objects, 'object')} of "
    return config_text.head(
        plan,
        _TASK_NAMES[plan.task],
        data + counted(len(s.classes), "class", "classes"),
        _FILES[plan.task],
        "The recipe is the same for all backbones, AdamW included. To compare, write another config with --model.",
    )


def _datasets(plan: Plan, train: Inspection, val: Inspection | None) -> list[str]:
    parts = {"TRAIN": train} if val is None else {"TRAIN": train, "VAL": val}
    paths = {part: {"JSON": found.json_file, "IMAGES": found.image_root} for part, found in parts.items()}
    lines = config_text.datasets(plan, paths, "CLASS_NAMES", train.data.class_names)
    return [*lines, *(["  ALLOW_OUTSIDE: True"] if plan.allow_outside else [])]


def _model(plan: Plan, settings: Settings, statistics: Statistics) -> list[str]:
    anchors, classes = settings.anchors, len(statistics.classes)
    lines = [
        "MODEL:",
        *_start(plan, statistics.objects // classes),
        f"  {_HEADS[plan.task]}:",
        f"    NUM_CLASSES: {classes}",
    ]
    if plan.task == "retinanet" and _needs_norms(plan):
        lines.append("    NORM: GN")
    if plan.task == "mask-rcnn" and plan.on_cpu:
        lines.append("    BATCH_SIZE_PER_IMAGE: 128  # a quarter of the COCO value, four times as fast on a CPU")
    return [
        *lines,
        "  ANCHOR_GENERATOR:",
        f"    # {anchors.factor:.3g} x stride: {anchors.covered:.1%} of the boxes overlap an anchor with IoU >= 0.5, "
        + f"compared to {anchors.covered_by_coco:.1%} with the COCO anchors.",
        "    SIZES:",
        *(f"      - {_list(row)}" for row in anchors.sizes),
        f"    ASPECT_RATIOS: [{_list(anchors.ratios)}]",
    ]


def _start(plan: Plan, objects: int) -> list[str]:
    """Return the lines about the initial weights; `objects` is the mean number of objects per class."""
    backbone = plan.backbone.settings(pretrained=bool(plan.weights))
    if plan.weights:
        return [f"  WEIGHTS: {_scalar(plan.weights)}", *backbone]
    lines = [
        f"  # Random weights: {plan.weights_reason}. ImageNet weights need much less data and time for the same AP.",
        *(
            [f"  # Expect a low AP: {objects} objects per class are few for random weights."]
            if objects < _FEW_OBJECTS
            else []
        ),
        '  WEIGHTS: ""',
        *backbone,
    ]
    if _needs_norms(plan):
        lines.append("  FPN: {NORM: GN}  # normalized layers learn several times faster from random weights")
        if plan.task == "mask-rcnn":
            lines.append("  ROI_MASK_HEAD: {NORM: GN}")
    return lines


def _needs_norms(plan: Plan) -> bool:
    # small.yaml, the base config for CPUs, already sets them.
    return not plan.weights and not plan.on_cpu


def _input(settings: Settings) -> list[str]:
    return [
        "INPUT:",
        f"  # Short side {settings.short_side}: {settings.short_side_reason[0]}",
        *(f"  # {line}" for line in settings.short_side_reason[1:]),
        f"  MIN_SIZE_TRAIN: {_list(settings.train_sides)}",
        f"  MAX_SIZE_TRAIN: {settings.max_sizes[1]}",
        f"  MIN_SIZE_TEST: {settings.short_side}",
        f"  MAX_SIZE_TEST: {settings.max_sizes[0]}  # long enough for nearly all images at this short side",
    ]


def _solver(plan: Plan, settings: Settings) -> list[str]:
    return [
        "SOLVER:",
        *config_text.length(settings),
        f"  WARMUP_ITERS: {min(500, max(1, settings.iterations // 14))}",
        f"  CHECKPOINT_PERIOD: {max(1, settings.iterations // 5)}",
        *config_text.optimizer(
            plan,
            "  WEIGHT_DECAY: 0.05",
            "  WEIGHT_DECAY_NORM: 0.0",
            "  LR_SCHEDULER_NAME: WarmupCosineLR  # does not need SOLVER.STEPS",
        ),
    ]


def _test(settings: Settings, name: str, *, has_val: bool) -> list[str]:
    lines = ["TEST:", f"  DETECTIONS_PER_IMAGE: {settings.detections}  # {settings.detections_reason}"]
    if has_val:
        lines.append(f"  EVAL_PERIOD: {max(1, settings.iterations // 2)}")
    return [*lines, f"OUTPUT_DIR: {_scalar('output/' + name)}"]
