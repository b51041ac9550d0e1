"""Recognize the key layout of a checkpoint and convert it to the layout of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pvt_det.errors import CheckpointError
from pvt_det.utils.text import listed
from pvt_det.weights.dialects import DETECTORS, TIMM_PREFIX, TRUNKS, Rule

# Prefix of the keys of a detector's trunk.
TRUNK_PREFIX = "backbone.bottom_up."
# Prefixes added by nn.DataParallel, DistributedDataParallel and torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# RetinaNet has three aspect ratios and three sizes per location, in the paper and in both code bases.
_RATIOS, _SIZES = 3, 3


@dataclass
class Translation:
    """Tensors under the names of this package.

    Attributes:
        source: Where the tensors come from, for messages.
        dialect: Name of the layout that they had.
        tensors: Translated tensors by their new name.
        unknown: Tensors that no rule matches, by their name in the source.
        is_detector: Whether the tensors are a detector's (`backbone.bottom_up.…`) rather than a bare trunk's.
        note: The note of the dialect: how the code that produced the weights differs.
    """

    source: str
    dialect: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unknown: dict[str, Tensor] = field(default_factory=dict)
    is_detector: bool = False
    note: str = ""


def translate(tensors: Mapping[str, Tensor], source: str) -> Translation:
    """Recognize the layout of a checkpoint's tensors from their keys and rename them.

    Args:
        tensors: Tensors by name, as `read_checkpoint` returns them.
        source: Where the tensors come from, for messages.

    Returns:
        The renamed tensors, and those that no rule of the layout matches.

    Raises:
        CheckpointError: If the layout is unknown.
    """
    unwrapped = _unwrap(dict(tensors))
    detector = next((d for d in DETECTORS if _has(d.marker, unwrapped)), None)
    prefix = detector.prefix if detector else ""
    inside = {k.removeprefix(prefix): v for k, v in unwrapped.items() if k.startswith(prefix)}
    trunk = _translate_trunk(inside, source)
    if trunk is None:
        raise CheckpointError(
            f"{source}: its {len(tensors)} tensors match no known layout of PVT or ResNet weights (first keys: "
            f"{', '.join(list(tensors)[:5])}). Check that it is the right file."
        )
    if detector is None:
        return trunk
    # Detectron2's FPN keys also begin with `backbone.`, but not with the trunk's prefix.
    done, unknown = _apply(detector.rules, {k: v for k, v in unwrapped.items() if not k.startswith(prefix)})
    done |= {TRUNK_PREFIX + k: v for k, v in trunk.tensors.items()}
    unknown |= {prefix + k: v for k, v in trunk.unknown.items()}
    return Translation(source, f"{detector.name}, {trunk.dialect}", done, unknown, True, trunk.note)


def translate_timm(
    tensors: Mapping[str, Tensor], source: str, from_timm: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> Translation:
    """Rename the tensors of a checkpoint for a model whose trunk is a model of timm.

    Args:
        tensors: Tensors by name: of a classifier of timm, or of a detector or backbone of this package.
        source: Where the tensors come from, for messages.
        from_timm: Renames the tensors of the classifier to those of the trunk.

    Returns:
        The renamed tensors.

    Raises:
        CheckpointError: If timm cannot convert the tensors.
    """
    unwrapped = _unwrap(dict(tensors))
    if any(key.removeprefix(TRUNK_PREFIX).startswith(TIMM_PREFIX) for key in unwrapped):
        return translate(unwrapped, source)
    try:
        return Translation(source, "timm", from_timm(unwrapped))
    # The conversion of each model expects keys of its own.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: timm cannot convert its tensors to the model ({type(error).__name__}: {error}). Check that it "
            "is the right file."
        ) from error


def rename(tensors: Mapping[str, Tensor], source: str, *, published: bool = False) -> dict[str, Tensor]:
    """Rename all tensors of a classifier, trunk or detector in any known layout.

    Args:
        tensors: Tensors by name, as `read_checkpoint` returns them.
        source: Where the tensors come from, for messages.
        published: Whether to use the published names of a trunk, and to return only the trunk of a detector. By
            default, this package's names are used.

    Returns:
        Tensors by their new name.

    Raises:
        CheckpointError: If the layout is unknown, or a name does not belong to it.
    """
    translation = translate(tensors, source)
    if translation.unknown:
        raise CheckpointError(
            f"{source}: {listed(list(translation.unknown), 10)}: not part of the layout {translation.dialect}. "
            "Check that it is the right file and holds a single model."
        )
    ours = translation.tensors
    trunk = {name.removeprefix(TRUNK_PREFIX): t for name, t in ours.items() if name.startswith(TRUNK_PREFIX)}
    return trunk if published and trunk else ours


def _translate_trunk(tensors: dict[str, Tensor], source: str) -> Translation | None:
    for dialect in TRUNKS:
        stripped = {k.removeprefix(dialect.prefix): v for k, v in tensors.items()}
        if _has(dialect.marker, stripped):
            done, unknown = _apply(dialect.rules, stripped)
            return Translation(source, dialect.name, done, unknown, note=dialect.note)
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
    """Return the renamed tensors, and those that match no rule or whose counterpart is missing."""
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
    """Apply an operation; None if a part is missing or has a shape or values that do not fit."""
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


def _concat(parts: Sequence[Tensor]) -> list[Tensor]:
    """Concatenate along the output channels, as in key and value to `kv`."""
    return [torch.cat(list(parts))]


def _split_q_kv(parts: Sequence[Tensor]) -> list[Tensor]:
    """Split `nn.MultiheadAttention`'s fused projection `3C×…` into query `C×…` and key-value `2C×…`."""
    channels = parts[0].shape[0] // 3
    return [parts[0][:channels], parts[0][channels:]]


def _conv_to_linear(parts: Sequence[Tensor]) -> list[Tensor]:
    """Remove the two spatial axes of a 1×1 convolution's weight; a bias is unchanged."""
    return [part.flatten(1) if part.dim() == 4 and part.shape[2:] == (1, 1) else part for part in parts]


def _ratio_major_to_size_major(parts: Sequence[Tensor]) -> list[Tensor]:
    """Reorder output channels from MMDetection's (ratio, size, …) to Detectron2's (size, ratio, …)."""
    return [part.unflatten(0, (_RATIOS, _SIZES, -1)).transpose(0, 1).flatten(0, 2) for part in parts]


def _count_from_zero(parts: Sequence[Tensor]) -> list[Tensor]:
    """Check that a constant is 0, 1, 2, … as in this package, and drop it."""
    if not torch.equal(parts[0].float(), torch.arange(parts[0].numel()).float()):
        raise RuntimeError("other values")
    return []


# Each operation takes parts in the order of a rule's sources and returns results in the order of its targets.
OPS: dict[str, Callable[[Sequence[Tensor]], list[Tensor]]] = {
    "same": list,
    "concat": _concat,
    "split_q_kv": _split_q_kv,
    "conv_to_linear": _conv_to_linear,
    "count_from_zero": _count_from_zero,
    "ratio_major_to_size_major": _ratio_major_to_size_major,
}
