"""Match the tensors of a checkpoint to those of a model, strictly, and report the allowed differences."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isqrt

import torch
from torch import Tensor

from pvt_det.errors import CheckpointError, NumericError
from pvt_det.layers.position import resize_position
from pvt_det.models.variants import VARIANTS
from pvt_det.utils.text import counted
from pvt_det.weights.translate import TRUNK_PREFIX, Translation

# Tensors that a file may hold although the model does not need them: label → pattern of keys. The first table is for
# tensors that only classifiers need.
_CLASSIFIER_ONLY = {"head": r"head\..+", "norm": r"norm\..+", "cls_token": r"cls_token", "fc": r"stem\.fc\..+"}
_BOOKKEEPING = {
    "num_batches_tracked": r".+\.num_batches_tracked",
    "anchors": r"(proposal_generator\.)?anchor_generator\.cell_anchors\..+",
    "pixel statistics": r"pixel_(mean|std)",
}
# Tensors that the file may lack although the model has them.
_COUNTERS = {"loss_normalizer": r"(.+\.)?loss_normalizer", "num_batches_tracked": r".+\.num_batches_tracked"}
_FOLDED = {"batch-norm statistics (folded into the file's scales)": r".+\.norm\.running_(mean|var)"}
# Layers whose number of outputs follows the number of classes.
_CLASS_LAYERS = {
    "head": r"(head|fc|head\.fc)\.(weight|bias)",
    "cls_score": r"(head|stages\.\d+|roi_heads\.box_predictor(\.\d)?)\.cls_score\.(weight|bias)",
    "bbox_pred": r"roi_heads\.box_predictor(\.\d)?\.bbox_pred\.(weight|bias)",
    "mask predictor": r"roi_heads\.mask_head(\.\d)?\.predictor\.(weight|bias)",
    "class_embed": r"(detr\.decoder\.)?class_embed\.(\d+\.)?(weight|bias)",
    "enc_score_head": r"detr\.enc_score_head\.(weight|bias)",
    "denoising_class_embed": r"detr\.denoising_class_embed\.weight",
    "semantic predictor": r"sem_seg_head\.predictor\.(weight|bias)",
}
_RESNETS: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}
_POSITION = re.compile(r"(?:.*\.)?pos_embed([1-4])")
# Label in the report for tensors that match the user's patterns.
_ALLOWED = "allowed partial"
Grid = tuple[int, int]


@dataclass
class LoadReport:
    """The result of loading weights. `str()` returns one line that says how much was loaded.

    Attributes:
        source: Where the weights came from.
        dialect: Name of the key layout of the file.
        total: Number of tensors in the file, counted under this package's names.
        loaded: Names of the model's tensors that were set.
        dropped: Reason → names of tensors in the file that the model does not use.
        new: Reason → names of weights of the model that keep their initial values and still need training.
        defaults: Reason → names of tensors of the model that are not weights and keep their defaults.
        notes: Further remarks, such as resized position embeddings.
    """

    source: str
    dialect: str
    total: int
    loaded: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    new: dict[str, list[str]] = field(default_factory=dict)
    defaults: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def require_whole(self) -> None:
        """Check that no weight of the model kept its initial value; for models that are not trained further.

        Tensors that `allow_partial` named are not checked.

        Raises:
            CheckpointError: If a weight kept its initial value.
        """
        if untrained := [reason for reason in self.new if reason != _ALLOWED]:
            count = sum(len(self.new[reason]) for reason in untrained)
            raise CheckpointError(
                f"{self.source} ({self.dialect}) leaves {counted(count, 'tensor')} of the model untrained: "
                f"{', '.join(untrained)}. Use the weights of a whole model with the same classes."
            )

    def __str__(self) -> str:
        parts = [f"{counted(self.total, 'tensor')}: {len(self.loaded)} loaded"]
        for what, groups in (("dropped", self.dropped), ("new", self.new), ("at defaults", self.defaults)):
            if groups:
                parts.append(f"{sum(map(len, groups.values()))} {what}: {', '.join(groups)}")
        return "; ".join([f"{self.source} ({self.dialect}): " + ", ".join(parts), *self.notes])


def match(
    model: Mapping[str, Tensor],
    translation: Translation,
    *,
    grids: Sequence[Grid] = (),
    unused: Collection[str] = (),
    allow_partial: Sequence[str] = (),
) -> tuple[dict[str, Tensor], LoadReport]:
    """Select the tensors of a file that are loaded into a model.

    Args:
        model: The model's state dict.
        translation: The file's tensors under this package's names.
        grids: Height and width of each of the model's four position embeddings, in tokens. If empty, they are square.
        unused: Names of further tensors that only a classifier has, and the trunk does not.
        allow_partial: Patterns (`*`, `?`) of tensor names that may be missing, unexpected or have a different shape.

    Returns:
        The selected tensors by their name in the model, and the report.

    Raises:
        CheckpointError: If a tensor is missing or unexpected, or its shape or type differs, and neither a built-in
            exception nor `allow_partial` covers it.
        NumericError: If a selected tensor holds NaN or infinity.
    """
    report = LoadReport(translation.source, translation.dialect, len(translation.tensors) + len(translation.unknown))
    report.notes += [translation.note] if translation.note else []
    matcher = _Matcher(model, report, grids, unused, allow_partial)
    found = matcher.align(translation)
    chosen = matcher.choose(found)
    matcher.account_for_missing(found)
    matcher.account_for_unexpected(found, translation.unknown)
    if matcher.faults:
        raise CheckpointError(_explain(translation, model, matcher.faults))
    # Checked in the model's dtype: a finite float64 value may overflow in float32.
    if broken := [name for name, value in chosen.items() if not value.to(model[name].dtype).isfinite().all()]:
        raise NumericError(
            f"{report.source}: NaN or infinity in {counted(len(broken), 'tensor')}: {', '.join(broken[:10])}."
        )
    report.loaded = list(chosen)
    return chosen, report


class _Matcher:
    """Sorts the tensors of a model and a file into matches, exceptions and faults."""

    def __init__(
        self,
        model: Mapping[str, Tensor],
        report: LoadReport,
        grids: Sequence[Grid],
        unused: Collection[str],
        allow_partial: Sequence[str],
    ) -> None:
        self.model, self.report, self.grids, self.unused = model, report, grids, unused
        self.allow_partial = allow_partial
        # Kind of mismatch → tensors that keep the file from fitting the model.
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.prefix = TRUNK_PREFIX if any(name.startswith(TRUNK_PREFIX) for name in model) else ""
        self.from_trunk = False

    def align(self, translation: Translation) -> dict[str, Tensor]:
        """Rename a trunk's tensors for a detector, and select a detector's for a trunk."""
        tensors = translation.tensors
        if self.prefix and not translation.is_detector:
            self.from_trunk = True
            return {self.prefix + name: tensor for name, tensor in tensors.items()}
        if translation.is_detector and not self.prefix:
            outside = [name for name in tensors if not name.startswith(TRUNK_PREFIX)]
            if outside:
                self.report.dropped["the rest of the detector"] = outside
            return {n.removeprefix(TRUNK_PREFIX): t for n, t in tensors.items() if n.startswith(TRUNK_PREFIX)}
        return dict(tensors)

    def choose(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Select the tensors that fit, after resizing position embeddings."""
        chosen = {}
        for name in (name for name in self.model if name in found):
            value, expected = self._fit_position(name, found[name]), self.model[name]
            fits = value.shape == expected.shape
            if fits and (value.is_floating_point() or not expected.is_floating_point()):
                chosen[name] = value
            elif not fits and (label := _class_layer(name, value, expected)):
                self._add(self.report.new, f"{label} ({len(expected)} outputs, {len(value)} in the file)", name)
            elif self._is_allowed(name):
                self._add(self.report.new, _ALLOWED, name)
            elif fits:
                self.faults["with an integer dtype"].append(f"{name} is {_type(value)}, expected {_type(expected)}")
            else:
                self.faults["with a different shape"].append(f"{name} is {_shape(value)}, expected {_shape(expected)}")
        return chosen

    def account_for_missing(self, found: Mapping[str, Tensor]) -> None:
        """Sort the tensors that the file lacks into exceptions and faults."""
        exceptions = _COUNTERS | (_FOLDED if self._is_folded(found) else {})
        for name in (name for name in self.model if name not in found):
            if label := _label(exceptions, name):
                self._add(self.report.defaults, label, name)
            elif self._is_output_norm(name, found):
                self._add(self.report.new, "output norms", name)
            elif self.from_trunk and not name.startswith(self.prefix):
                self._add(self.report.new, "fpn" if name.startswith("backbone.") else name.split(".")[0], name)
            elif self._is_allowed(name):
                self._add(self.report.new, _ALLOWED, name)
            else:
                self.faults["missing"].append(name)

    def account_for_unexpected(self, found: Mapping[str, Tensor], unknown: Mapping[str, Tensor]) -> None:
        """Sort the tensors that the model lacks into exceptions and faults."""
        for name in (name for name in [*found, *unknown] if name not in self.model):
            label = _label(_BOOKKEEPING, name)
            if self.prefix + "head.weight" not in self.model and name.startswith(self.prefix):
                local = name.removeprefix(self.prefix)
                label = label or ("classifier" if local in self.unused else _label(_CLASSIFIER_ONLY, local))
            if label and name in found:
                self._add(self.report.dropped, label, name)
            elif self._is_allowed(name):
                self._add(self.report.dropped, _ALLOWED, name)
            else:
                self.faults["unexpected"].append(name)

    def _fit_position(self, name: str, value: Tensor) -> Tensor:
        found, expected = _POSITION.fullmatch(name), self.model[name]
        if found is None or value.shape == expected.shape:
            return value
        stage = int(found[1])
        grid = self.grids[stage - 1] if self.grids else None
        fitted = _fit_position(value, expected, stage, grid, needs_slot=self.prefix + "cls_token" in self.model)
        if fitted is None:
            return value
        change = f"{value.shape[1]} to {fitted.shape[1]} positions"
        same = value.shape[1] + 1 == fitted.shape[1]
        self.report.notes.append(f"{name}: {'unused class slot added' if same else 'resized'}, {change}")
        return fitted

    def _is_folded(self, found: Mapping[str, Tensor]) -> bool:
        # FrozenBatchNorm2d has no batch counter and starts as the identity, which suits folded statistics. BatchNorm2d
        # would continue to train them.
        norms = [name for name in self.model if name.endswith(".num_batches_tracked")]
        frozen = not any(name.startswith(self.prefix) for name in norms)
        return frozen and not any(name.endswith("running_var") for name in found)

    def _is_output_norm(self, name: str, found: Mapping[str, Tensor]) -> bool:
        """Return whether a tensor belongs to the norms that a backbone adds to a classifier's trunk."""
        norms = f"{self.prefix}output_norms."
        return name.startswith(norms) and not any(other.startswith(norms) for other in found)

    def _is_allowed(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.allow_partial)

    @staticmethod
    def _add(groups: dict[str, list[str]], label: str, name: str) -> None:
        groups.setdefault(label, []).append(name)


def _label(table: Mapping[str, str], name: str) -> str | None:
    return next((label for label, pattern in table.items() if re.fullmatch(pattern, name)), None)


def _class_layer(name: str, value: Tensor, expected: Tensor) -> str | None:
    """Return a layer's label if only its number of outputs, which depends on the classes, differs."""
    return _label(_CLASS_LAYERS, name) if value.dim() and value.shape[1:] == expected.shape[1:] else None


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _explain(translation: Translation, model: Mapping[str, Tensor], faults: Mapping[str, Sequence[str]]) -> str:
    ours, theirs = identify(model), identify(translation.tensors)
    hint = f"this file is a {theirs}, the model is {ours}; " if ours and theirs and ours != theirs else ""
    kinds = ("missing", "unexpected", "with a different shape", "with an integer dtype")
    details = "; ".join(
        f"{len(faults[kind])} {kind}: {', '.join(faults[kind][:10])}{', …' if len(faults[kind]) > 10 else ''}"
        for kind in kinds
        if kind in faults
    )
    total = len(translation.tensors) + len(translation.unknown)
    return (
        f"{translation.source} ({translation.dialect}, {counted(total, 'tensor')}) does not fit the model: "
        f"{hint}{details}. Use a file that matches the model, or name the tensors that may differ with --allow-partial "
        "PATTERN."
    )


def identify(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the variant that the tensors belong to, or None if it is unknown.

    Args:
        tensors: Tensors of a trunk, classifier or detector, under this package's names.
    """
    local = {name.removeprefix(TRUNK_PREFIX): tensor for name, tensor in tensors.items()}
    if "stem.conv1.weight" in local:
        name = _RESNETS.get(_depths(local, r"res([2-5])\.(\d+)\.conv1\.weight"))
        return "resnet34" if name == "resnet50" and "res2.0.conv3.weight" not in local else name
    depths = _depths(local, r"block([1-4])\.(\d+)\.norm1\.weight")
    projections = (local.get(f"patch_embed{stage}.proj.weight") for stage in range(1, 5))
    dims = tuple(size for weight in projections if weight is not None for size in weight.shape[:1])
    family = "v1" if "pos_embed1" in local else "v2"
    reduction = local.get("block1.0.attn.sr.weight")
    linear = family == "v2" and reduction is not None and tuple(reduction.shape[2:]) == (1, 1)
    for name, row in VARIANTS.items():
        if (row.family, row.depths, row.embed_dims, row.linear) == (family, depths, dims, linear):
            return name
    return None


def _depths(names: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    count = Counter(found[1] for name in names if (found := re.fullmatch(pattern, name)))
    return tuple(count[stage] for stage in sorted(count))


def _fit_position(table: Tensor, expected: Tensor, stage: int, grid: Grid | None, needs_slot: bool) -> Tensor | None:
    """Resize position embeddings bilinearly to the model's size, except the slot of the class token.

    Args:
        table: Position embeddings of the file, `1×L×C`, for a square image. In stage 4 they start with the slot of the
            class token, which MMDetection omits.
        expected: Position embeddings of the model, `1×L'×C`. In stage 4 they start with the slot.
        stage: Stage of the trunk, 1 to 4.
        grid: Height and width of the model's position embeddings in tokens. If None, they are square.
        needs_slot: Whether the model has a class token, so that a missing slot cannot be filled with zeros.

    Returns:
        Resized position embeddings, `1×L'×C`, or None if the file's cannot be resized to fit.
    """
    if table.dim() != 3 or table.shape[::2] != expected.shape[::2]:
        return None
    slots = 1 if stage == 4 else 0
    slot, tokens = table[:, :slots], table[:, slots:]
    if slots and _side(tokens) is None and not needs_slot:
        slot, tokens = table.new_zeros(table[:, :1].shape), table
    old, new = _side(tokens), grid or _side(expected[:, slots:])
    if old is None or new is None:
        return None
    return torch.cat([slot, resize_position(tokens, old, new)], dim=1)


def _side(tokens: Tensor) -> Grid | None:
    side = isqrt(tokens.shape[1])
    return (side, side) if side > 0 and side * side == tokens.shape[1] else None
