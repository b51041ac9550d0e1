"""Decide, tensor by tensor, what a file gives to a model: strict, with named exceptions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from pvt_det.errors import CheckpointError, NumericError
from pvt_det.weights.identify import identify
from pvt_det.weights.positions import Grid, fit_position, position_stage
from pvt_det.weights.report import ALLOWED, Faults, LoadReport
from pvt_det.weights.translate import TRUNK_PREFIX, Translation

# What a file may hold and the model not need: name → pattern of keys. The first are a classifier's, for dense
# prediction.
_CLASSIFIER_ONLY = {"head": r"head\..+", "norm": r"norm\..+", "cls_token": r"cls_token", "fc": r"stem\.fc\..+"}
_BOOKKEEPING = {
    "num_batches_tracked": r".+\.num_batches_tracked",
    "anchors": r"(proposal_generator\.)?anchor_generator\.cell_anchors\..+",
    "pixel statistics": r"pixel_(mean|std)",
}
# What a model may need and the file not hold.
_COUNTERS = {"loss_normalizer": r"(.+\.)?loss_normalizer", "num_batches_tracked": r".+\.num_batches_tracked"}
_FOLDED = {"batch-norm statistics (folded into the file's scales)": r".+\.norm\.running_(mean|var)"}
# Layers whose number of outputs follows the number of classes.
_CLASS_LAYERS = {
    "head": r"head\.(weight|bias)",
    "cls_score": r"(head|roi_heads\.box_predictor(\.\d)?)\.cls_score\.(weight|bias)",
    "bbox_pred": r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)",
    "mask predictor": r"roi_heads\.mask_head\.predictor\.(weight|bias)",
    "semantic predictor": r"sem_seg_head\.predictor\.(weight|bias)",
}


def match(
    model: Mapping[str, Tensor],
    translation: Translation,
    *,
    source: str,
    grids: Sequence[Grid] = (),
    allow_partial: Sequence[str] = (),
) -> tuple[dict[str, Tensor], LoadReport]:
    """Choose the tensors of a file that go into a model.

    Args:
        model: The model's state dict.
        translation: The file's tensors under this package's names.
        source: Name of the file, for messages.
        grids: Height and width in tokens of the model's four position embeddings; square if empty.
        allow_partial: Patterns (`*`, `?`) of names that may be missing, unexpected or of another shape.

    Returns:
        Tensors by name in the model, and the report.

    Raises:
        CheckpointError: If a tensor of the model is not in the file, or one of the file not in the model, or its shape
            or kind of number differs, and neither a named exception nor `allow_partial` covers it.
        NumericError: If a tensor holds NaN or infinity.
    """
    report = LoadReport(source, translation.dialect, len(translation.tensors) + len(translation.unknown))
    report.notes += [translation.note] if translation.note else []
    matcher = _Matcher(model, report, grids, allow_partial)
    found = matcher.align(translation)
    chosen = matcher.choose(found)
    matcher.account_for_missing(found)
    matcher.account_for_unexpected(found, translation.unknown)
    if matcher.faults:
        raise CheckpointError(_explain(translation, model, report, matcher.faults))
    # As the model's numbers: what is finite in a file of float64 need not be so in float32.
    if broken := [name for name, value in chosen.items() if not value.to(model[name].dtype).isfinite().all()]:
        raise NumericError(f"{source}: NaN or infinity in {len(broken)} tensors: {', '.join(broken[:10])}")
    report.loaded = list(chosen)
    return chosen, report


class _Matcher:
    def __init__(
        self, model: Mapping[str, Tensor], report: LoadReport, grids: Sequence[Grid], allow_partial: Sequence[str]
    ) -> None:
        self.model, self.report, self.grids, self.allow_partial = model, report, grids, allow_partial
        self.faults = Faults()
        self.prefix = TRUNK_PREFIX if any(name.startswith(TRUNK_PREFIX) for name in model) else ""
        self.from_trunk = False

    def align(self, translation: Translation) -> dict[str, Tensor]:
        """Bring a trunk's tensors to a detector, and a detector's to a trunk."""
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
        """Take the tensors that fit, resizing position embeddings."""
        chosen = {}
        for name in (name for name in self.model if name in found):
            value, wanted = self._fit_position(name, found[name]), self.model[name]
            fits = value.shape == wanted.shape
            if fits and (value.is_floating_point() or not wanted.is_floating_point()):
                chosen[name] = value
            elif not fits and (label := _other_classes(name, value, wanted)):
                self._put(self.report.new, f"{label} ({len(wanted)} outputs, {len(value)} in the file)", name)
            elif self._is_allowed(name):
                self._put(self.report.new, ALLOWED, name)
            elif fits:
                self.faults.types.append(f"{name} is {_type(value)}, the model's {_type(wanted)}")
            else:
                self.faults.shapes.append(f"{name} is {_shape(value)}, the model's {_shape(wanted)}")
        return chosen

    def account_for_missing(self, found: Mapping[str, Tensor]) -> None:
        """Sort what the model has and the file has not into exceptions and faults."""
        exceptions = _COUNTERS | (_FOLDED if self._is_folded(found) else {})
        for name in (name for name in self.model if name not in found):
            if label := _label(exceptions, name):
                self._put(self.report.defaults, label, name)
            elif self.from_trunk and not name.startswith(self.prefix):
                self._put(self.report.new, "fpn" if name.startswith("backbone.") else name.split(".")[0], name)
            elif self._is_allowed(name):
                self._put(self.report.new, ALLOWED, name)
            else:
                self.faults.missing.append(name)

    def account_for_unexpected(self, found: Mapping[str, Tensor], unknown: Mapping[str, Tensor]) -> None:
        """Sort what the file has and the model has not into exceptions and faults."""
        for name in (name for name in [*found, *unknown] if name not in self.model):
            label = _label(_BOOKKEEPING, name)
            if self.prefix + "head.weight" not in self.model and name.startswith(self.prefix):
                label = label or _label(_CLASSIFIER_ONLY, name.removeprefix(self.prefix))
            if label and name in found:
                self._put(self.report.dropped, label, name)
            elif self._is_allowed(name):
                self._put(self.report.dropped, ALLOWED, name)
            else:
                self.faults.unexpected.append(name)

    def _fit_position(self, name: str, value: Tensor) -> Tensor:
        stage, wanted = position_stage(name), self.model[name]
        if stage is None or value.shape == wanted.shape:
            return value
        grid = self.grids[stage - 1] if self.grids else None
        fitted = fit_position(value, wanted, stage, grid, needs_slot=self.prefix + "cls_token" in self.model)
        if fitted is None:
            return value
        change = f"{value.shape[1]} to {fitted.shape[1]} positions"
        same = value.shape[1] + 1 == fitted.shape[1]
        self.report.notes.append(f"{name}: {'unused class slot added' if same else 'resized'}, {change}")
        return fitted

    def _is_folded(self, found: Mapping[str, Tensor]) -> bool:
        # FrozenBatchNorm2d, which starts as the identity, counts no batches; a BatchNorm2d would train on.
        frozen = not any(name.endswith(".num_batches_tracked") for name in self.model)
        return frozen and not any(name.endswith("running_var") for name in found)

    def _is_allowed(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.allow_partial)

    @staticmethod
    def _put(groups: dict[str, list[str]], label: str, name: str) -> None:
        groups.setdefault(label, []).append(name)


def _label(table: Mapping[str, str], name: str) -> str | None:
    return next((label for label, pattern in table.items() if re.fullmatch(pattern, name)), None)


def _other_classes(name: str, value: Tensor, wanted: Tensor) -> str | None:
    """The label of a layer whose shape differs in its number of outputs alone, which follows the number of classes."""
    return _label(_CLASS_LAYERS, name) if value.dim() and value.shape[1:] == wanted.shape[1:] else None


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _explain(translation: Translation, model: Mapping[str, Tensor], report: LoadReport, faults: Faults) -> str:
    here, there = identify(translation.tensors), identify(model)
    hint = f"this file is a {here}, the model is {there}; " if here and there and here != there else ""
    return (
        f"{report.source} ({translation.dialect}, {report.total} tensors) does not fit the model: {hint}{faults}. "
        "Choose the model and file that belong together, or name what may differ with --allow-partial PATTERN"
    )
