"""A config for training on an inspected data set, written with the reason of every setting."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from pvt_det.inspection.inspect import Inspection
from pvt_det.inspection.recommend import Settings
from pvt_det.inspection.statistics import Statistics
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder

_BASES = Path(__file__).parents[2] / "configs/base"
_FILES = {
    "retinanet": ("retinanet.yaml", "retinanet_pvt.yaml"),
    "mask-rcnn": ("mask_rcnn.yaml", "rcnn_pvt.yaml"),
}
# Random weights learn the blood cells, whose rarest class has some 300 objects; COCO has 10,000 a class.
_FEW = 200


@dataclass(frozen=True)
class Plan:
    """What a config is written for.

    Attributes:
        task: one of `pvt_det.inspection.recommend.TASKS`.
        model: a variant, such as "pvt_tiny".
        weights: MODEL.WEIGHTS; "" starts from random weights, and `weights_reason` says why.
        on_cpu: for a CPU.
        on_error: DATASETS.ON_ERROR.
        allow_outside: DATASETS.ALLOW_OUTSIDE.
    """

    task: str
    model: str
    weights: str
    weights_reason: str
    on_cpu: bool
    on_error: str
    allow_outside: bool


def check_place(path: Path) -> None:
    """Make sure that a config can be written here; its folder is made.

    Raises:
        ConfigError: it exists, has another ending than .yaml, cannot be written, or the configs are missing.
    """
    if path.suffix != ".yaml":
        raise ConfigError(f"{path}: a config's name ends in .yaml.")
    if path.exists():
        raise ConfigError(f"{path} exists: choose another name for the config, or remove it.")
    if not _BASES.is_dir():
        raise ConfigError(f"{_BASES} does not exist: a config can be written from a checkout of this package only.")
    make_folder(path.parent)


def write_config(path: Path, plan: Plan, settings: Settings, train: Inspection, val: Inspection | None) -> None:
    """Write a config that `tools/train_net.py` trains with as it is, and check it.

    Raises:
        ConfigError: as `check_place`.
    """
    check_place(path)
    write_atomically(path, _text(path, plan, settings, train, val))
    load_config(path)


def _text(path: Path, plan: Plan, settings: Settings, train: Inspection, val: Inspection | None) -> str:
    parts = [
        _head(path, plan, train),
        _datasets(plan, train, val),
        _model(plan, settings, train.statistics),
        _input(settings),
        _solver(plan, settings),
        _test(settings, path.stem, has_val=val is not None),
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(path: Path, plan: Plan, train: Inspection) -> list[str]:
    s = train.statistics
    names = [*_FILES[plan.task], *(["small.yaml"] if plan.on_cpu else [])]
    folder = path.resolve().parent
    # Relative paths within the checkout, which may be moved; absolute ones from elsewhere.
    is_inside = folder.is_relative_to(_BASES.parents[1])
    bases = [os.path.relpath(_BASES / name, folder) if is_inside else str(_BASES / name) for name in names]
    classes = "1 class" if len(s.classes) == 1 else f"{len(s.classes)} classes"
    return [
        f"# For {s.images:,} images with {s.objects:,} objects of {classes}, "
        f"{'on a CPU' if plan.on_cpu else 'on GPUs'}; written by pvt-det inspect.",
        f"_BASE_: {_list(bases)}",
    ]


def _datasets(plan: Plan, train: Inspection, val: Inspection | None) -> list[str]:
    lines = ["DATASETS:"]
    for part, found in (("TRAIN", train), ("VAL", val)):
        if found is not None:
            lines.append(f"  {part}_JSON: {_scalar(str(found.json_file.resolve()))}")
            lines.append(f"  {part}_IMAGES: {_scalar(str(found.image_root.resolve()))}")
    if val is None:
        lines.append("  # Without VAL_JSON and VAL_IMAGES there is no evaluation.")
    lines.append(f"  CLASS_NAMES: {_list(train.data.class_names)}")
    if plan.on_error != "stop":
        lines.append(f"  ON_ERROR: {plan.on_error}")
    if plan.allow_outside:
        lines.append("  ALLOW_OUTSIDE: True")
    return lines


def _model(plan: Plan, settings: Settings, statistics: Statistics) -> list[str]:
    anchors, classes = settings.anchors, len(statistics.classes)
    lines = [
        "MODEL:",
        *_start(plan, statistics.objects // classes),
        f"  {'RETINANET' if plan.task == 'retinanet' else 'ROI_HEADS'}:",
        f"    NUM_CLASSES: {classes}",
    ]
    if plan.task == "retinanet" and _needs_norms(plan):
        lines.append("    NORM: GN")
    if plan.task == "mask-rcnn" and plan.on_cpu:
        lines.append("    BATCH_SIZE_PER_IMAGE: 128  # a quarter of COCO's: four times as fast on a CPU")
    return [
        *lines,
        "  ANCHOR_GENERATOR:",
        f"    # {anchors.factor:.3g} x stride: {anchors.covered:.1%} of boxes overlap an anchor by IoU 0.5 or more; "
        + f"with COCO's, {anchors.usual:.1%}.",
        "    SIZES:",
        *(f"      - {_list(row)}" for row in anchors.sizes),
        f"    ASPECT_RATIOS: [{_list(anchors.ratios)}]",
    ]


def _start(plan: Plan, objects: int) -> list[str]:
    """Where the backbone starts from; `objects` is how many a class has, on average."""
    if plan.weights:
        return [f"  WEIGHTS: {_scalar(plan.weights)}", f"  PVT: {{VARIANT: {plan.model}}}"]
    lines = [
        f"  # Random weights: {plan.weights_reason}. With ImageNet's, much less data and time give as much.",
        *([f"  # {objects} objects a class are few for random weights: expect little."] if objects < _FEW else []),
        '  WEIGHTS: ""',
        f"  PVT: {{VARIANT: {plan.model}, DROP_PATH_RATE: 0.0}}  # random weights have to fit the data first",
    ]
    if _needs_norms(plan):
        lines.append("  FPN: {NORM: GN}  # from random weights, normalised layers learn several times faster")
        if plan.task == "mask-rcnn":
            lines.append("  ROI_MASK_HEAD: {NORM: GN}")
    return lines


def _needs_norms(plan: Plan) -> bool:
    # On a CPU, small.yaml has them.
    return not plan.weights and not plan.on_cpu


def _input(settings: Settings) -> list[str]:
    return [
        "INPUT:",
        f"  # Short side {settings.side}: {settings.side_reason[0]}",
        *(f"  # {line}" for line in settings.side_reason[1:]),
        f"  MIN_SIZE_TRAIN: {_list(settings.train_sides)}",
        f"  MAX_SIZE_TRAIN: {settings.most[1]}",
        f"  MIN_SIZE_TEST: {settings.side}",
        f"  MAX_SIZE_TEST: {settings.most[0]}  # nearly all images fit at that short side",
    ]


def _solver(plan: Plan, settings: Settings) -> list[str]:
    lines = [
        "SOLVER:",
        f"  IMS_PER_BATCH: {settings.batch}",
        f"  MAX_ITER: {settings.iterations}  # {settings.iterations_reason}",
        f"  BASE_LR: {settings.rate:g}  # {settings.rate_reason}",
        f"  WARMUP_ITERS: {min(500, max(1, settings.iterations // 14))}",
        f"  CHECKPOINT_PERIOD: {max(1, settings.iterations // 5)}",
    ]
    if not plan.on_cpu:
        lines += [
            "  OPTIMIZER: adamw",
            "  WEIGHT_DECAY: 0.05",
            "  WEIGHT_DECAY_NORM: 0.0",
            "  LR_SCHEDULER_NAME: WarmupCosineLR  # needs no steps to be chosen",
            "  CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: full_model, CLIP_VALUE: 5.0}  # one odd image does no harm",
            "  AMP: {ENABLED: True}",
        ]
    return lines


def _test(settings: Settings, name: str, *, has_val: bool) -> list[str]:
    lines = ["TEST:", f"  DETECTIONS_PER_IMAGE: {settings.detections}  # {settings.detections_reason}"]
    if has_val:
        lines.append(f"  EVAL_PERIOD: {max(1, settings.iterations // 2)}")
    return [*lines, f"OUTPUT_DIR: {_scalar('output/' + name)}"]


def _scalar(value: Any) -> str:
    """A value as YAML, whatever characters a name or path has."""
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9).strip()


def _list(values: list[Any]) -> str:
    return "[" + ", ".join(_scalar(v) if isinstance(v, str) else f"{v:g}" for v in values) + "]"
