"""Parts that all configs written by `pvt-det inspect` have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from pvt_det.inspection.plan import Plan
from pvt_det.utils.precision import has_fast_bf16

if TYPE_CHECKING:
    from pvt_det.inspection.recommend import Settings
    from pvt_det.inspection.semantic.recommend import LabelSettings


def head(plan: Plan, model: str, data: str, files: Iterable[str], *notes: str) -> list[str]:
    """Return the first lines: what the config is for, and its base configs.

    The base configs are recipes by name, so that the config can be copied to another machine.

    Args:
        plan: What to train.
        model: Name of the model without its backbone.
        data: Description of the data.
        files: Names of files in `configs/base`, with `{}` for the family of the backbone.
        notes: More comments.
    """
    names = [*(file.format(plan.backbone.family) for file in files), *(["small"] if plan.on_cpu else [])]
    return [
        f"# {model} with the backbone {plan.backbone.name}, written by pvt-det inspect for {data}, "
        f"{'on a CPU' if plan.on_cpu else 'on GPUs'}.",
        *(f"# {note}" for note in notes),
        f"_BASE_: [{', '.join(f'base/{name}' for name in names)}]",
    ]


def datasets(plan: Plan, paths: Mapping[str, Mapping[str, Path]], names_key: str, names: Sequence[str]) -> list[str]:
    """Return the section DATASETS.

    Args:
        plan: What to train.
        paths: Files and folders of the parts "TRAIN" and, to evaluate, "VAL", by the last word of their keys.
        names_key: The key for the class names.
        names: The class names.
    """
    lines = ["DATASETS:"]
    for part, of_part in paths.items():
        lines += [f"  {part}_{kind}: {scalar(str(path.resolve()))}" for kind, path in of_part.items()]
    if "VAL" not in paths:
        lines.append(f"  # Set {' and '.join(f'VAL_{kind}' for kind in paths['TRAIN'])} to evaluate.")
    lines.append(f"  {names_key}: {flow_list(names)}")
    return [*lines, *([f"  ON_ERROR: {plan.on_error}"] if plan.on_error != "stop" else [])]


def length(settings: Settings | LabelSettings) -> list[str]:
    """Return the lines of SOLVER about the batch, the number of iterations and the learning rate.

    Args:
        settings: The recommended settings and their reasons.
    """
    return [
        f"  IMS_PER_BATCH: {settings.batch}",
        f"  MAX_ITER: {settings.iterations}  # {settings.iterations_reason}",
        f"  BASE_LR: {settings.learning_rate:g}  # {settings.learning_rate_reason}",
    ]


def optimizer(plan: Plan, *details: str) -> list[str]:
    """Return the lines of SOLVER about the optimizer and the precision. On a CPU, `small.yaml` sets the optimizer.

    Args:
        plan: What to train.
        details: Lines about the optimizer on GPUs.
    """
    if not plan.on_cpu:
        return [
            "  OPTIMIZER: adamw",
            *details,
            "  CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: full_model, CLIP_VALUE: 5.0}  # limits outlier gradients",
            "  AMP: {ENABLED: True}",
        ]
    if has_fast_bf16(torch.device("cpu")):
        return []
    return ["  AMP: {ENABLED: False}  # this processor has no bf16 instructions: fp32 is faster"]


def scalar(value: Any) -> str:
    """Format a value as YAML on one line, with any characters quoted.

    Args:
        value: A string or another scalar.
    """
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9).strip()


def flow_list(values: Iterable[Any]) -> str:
    """Format strings or numbers as a YAML list on one line.

    Args:
        values: The values.
    """
    return "[" + ", ".join(scalar(value) if isinstance(value, str) else f"{value:g}" for value in values) + "]"
