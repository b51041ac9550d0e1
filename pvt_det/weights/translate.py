"""Recognise the layout of a checkpoint from its keys, and bring it into the layout of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pvt_det.weights.dialects import DETECTORS, TRUNKS, Rule
from pvt_det.weights.ops import OPS

# What the keys of a detector's trunk begin with.
TRUNK_PREFIX = "backbone.bottom_up."
# Left by nn.DataParallel, DistributedDataParallel and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")


@dataclass
class Translation:
    """Tensors under the names of this package.

    Attributes:
        dialect: Name of the layout they came in.
        tensors: Translated tensors by name.
        unknown: Keys of the source that no rule fits.
        is_detector: Whether the names are a detector's (`backbone.bottom_up.…`) or a bare trunk's.
        note: The dialect's.
    """

    dialect: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unknown: dict[str, Tensor] = field(default_factory=dict)
    is_detector: bool = False
    note: str = ""


def translate(tensors: Mapping[str, Tensor]) -> Translation | None:
    """Recognise the layout of `tensors` from their keys and rename them; None where the layout is unknown."""
    tensors = _unwrap(dict(tensors))
    detector = next((d for d in DETECTORS if _has(d.marker, tensors)), None)
    if detector is None:
        return _translate_trunk(tensors)
    inside = {k.removeprefix(detector.prefix): v for k, v in tensors.items() if k.startswith(detector.prefix)}
    trunk = _translate_trunk(inside)
    if trunk is None:
        return None
    outside = {k: v for k, v in tensors.items() if not k.startswith(detector.prefix)}
    # Detectron2's FPN keys begin with `backbone.` too, but not with the trunk's prefix.
    done, unknown = _apply(detector.rules, outside)
    done |= {TRUNK_PREFIX + k: v for k, v in trunk.tensors.items()}
    unknown |= {detector.prefix + k: v for k, v in trunk.unknown.items()}
    return Translation(f"{detector.name}, {trunk.dialect}", done, unknown, True, trunk.note)


def _translate_trunk(tensors: dict[str, Tensor]) -> Translation | None:
    for dialect in TRUNKS:
        stripped = {k.removeprefix(dialect.prefix): v for k, v in tensors.items()}
        if _has(dialect.marker, stripped):
            done, unknown = _apply(dialect.rules, stripped)
            return Translation(dialect.name, done, unknown, note=dialect.note)
    return None


def _unwrap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS * 2:
        if tensors and all(k.startswith(prefix) for k in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors


def _has(marker: str, tensors: Mapping[str, Tensor]) -> bool:
    pattern = re.compile(marker)
    return any(pattern.fullmatch(k) for k in tensors)


def _apply(rules: tuple[Rule, ...], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename; returns the renamed tensors, and those that no rule fits or whose counterpart is not there."""
    joined: dict[tuple[Rule, tuple[str, ...]], dict[int, str]] = {}
    unknown = {}
    for key in tensors:
        for rule, i, match in ((r, i, re.fullmatch(s, key)) for r in rules for i, s in enumerate(r.sources)):
            if match:
                joined.setdefault((rule, tuple(_fill(t, match) for t in rule.targets)), {})[i] = key
                break
        else:
            unknown[key] = tensors[key]
    done: dict[str, Tensor] = {}
    for (rule, targets), parts in joined.items():
        changed = _change(rule.op, [tensors[key] for _, key in sorted(parts.items())], len(rule.sources))
        if changed is None:
            unknown |= {key: tensors[key] for key in parts.values()}
        else:
            done |= zip(targets, changed, strict=True)
    return done, unknown


def _change(op: str, parts: list[Tensor], wanted: int) -> list[Tensor] | None:
    """Change the numbers; None where parts are lacking, or have shapes that no layer has."""
    try:
        return OPS[op](parts) if len(parts) == wanted else None
    except (IndexError, RuntimeError):
        return None


def _fill(template: str, match: re.Match[str]) -> str:
    def value(field: re.Match[str]) -> str:
        text = match[field["group"]]
        if not field["sign"]:
            return text
        n = int(field["n"])
        return str(int(text) * n if field["sign"] == "*" else int(text) + (n if field["sign"] == "+" else -n))

    return re.sub(r"\{(?P<group>\w+?)(?:(?P<sign>[-+*])(?P<n>\d+))?\}", value, template)
