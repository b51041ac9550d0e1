"""What an inspection found and wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pvt_det.inspection.inspect import Advice, Inspection
from pvt_det.inspection.semantic.inspection import LabelInspection
from pvt_det.inspection.split import Split


@dataclass(frozen=True)
class InspectionResult:
    """What was found in one or two data sets, and the files that were written.

    Attributes:
        train: The training data: an `Inspection` of objects, with `statistics` and `advice`, or a `LabelInspection` of
            label maps, with `classes`, `sizes` and `advice`.
        val: The validation data, or None.
        leakage: What the two have in common and should not, such as the same images.
        on_error: How training handles broken data, a value of DATASETS.ON_ERROR.
        title: Title of the training data: "All data" before it is split.
        split: How the data was split into `train` and `val`, or None if it was not.
        refusal: Why training would refuse the data, as a sentence. "" if it accepts them.
        notes: Other sentences, such as that weights could not be downloaded.
        written: The files that were written, each with what it contains.
    """

    train: Inspection | LabelInspection
    val: Inspection | LabelInspection | None
    leakage: list[Advice]
    on_error: str
    title: str = "Training data"
    split: Split | None = None
    refusal: str = ""
    notes: tuple[str, ...] = ()
    written: tuple[tuple[Path, str], ...] = ()

    @property
    def is_accepted(self) -> bool:
        """Whether training accepts the data, and with `on_error` "strict", whether there is nothing to report."""
        return not self.refusal

    @property
    def parts(self) -> list[tuple[str, Inspection | LabelInspection]]:
        """The training data and, if there are any, the validation data, each with its title."""
        val = [("Validation data", self.val)] if self.val else []
        return [(self.title, self.train), *val]

    @property
    def problems(self) -> list[str]:
        """The problems of all data, one line each: "fixed: 3 x …", "dropped: …" or "refused: …"."""
        return [line for _, found in self.parts for line in found.findings.lines(self.on_error)]

    @property
    def class_names(self) -> list[str]:
        """The class names of the training data, by class index."""
        return self.train.class_names
