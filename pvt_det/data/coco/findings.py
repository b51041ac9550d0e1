"""Collect the problems found in a data set, and decide whether each one is fixed, dropped or refused.

The outcome depends on the kind of problem and on DATASETS.ON_ERROR. A problem is fixable if it has a single correct
fix, such as a missing area. It is fatal if dropping the affected parts is not an option, such as an empty data set.

| DATASETS.ON_ERROR | fixable | broken  | fatal   |
|-------------------|---------|---------|---------|
| skip              | fixed   | dropped | refused |
| stop (default)    | fixed   | refused | refused |
| strict            | refused | refused | refused |
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pvt_det.errors import DataError

# `inspect`, `train` and `eval` have this option.
SKIP_OPTION = "--on-error skip (DATASETS.ON_ERROR skip)"
_MAX_SHOWN = 3
_MAX_KEPT = 24


@dataclass
class Problem:
    """One kind of problem.

    Attributes:
        count: Number of images, annotations or categories that have the problem.
        first: Ids or files of the first few of them.
        repair: How the problem is fixed, such as "set to 0"; "" if it cannot be fixed.
        fatal: Whether the data set is refused even with DATASETS.ON_ERROR skip.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    repair: str = ""
    fatal: bool = False

    def outcome(self, on_error: str) -> str:
        """Return "fixed", "dropped" or "refused".

        Args:
            on_error: Value of DATASETS.ON_ERROR: "stop", "skip" or "strict".
        """
        if self.fatal or on_error == "strict":
            return "refused"
        if self.repair:
            return "fixed"
        return "dropped" if on_error == "skip" else "refused"


class Findings:
    """Problems of one data set, collected so that one report can show all of them."""

    def __init__(self) -> None:
        self.problems: dict[str, Problem] = {}

    def add(self, kind: str, offender: str, *, repair: str = "", fatal: bool = False) -> None:
        """Add one occurrence of a problem.

        Args:
            kind: Description of the problem that names its key or cause.
            offender: Affected id or file, such as "annotation 7", "a.xml, line 9" or "image 3: reason".
            repair: How the problem is fixed; "" if it cannot be fixed.
            fatal: Whether the data set is refused even with DATASETS.ON_ERROR skip.
        """
        problem = self.problems.setdefault(kind, Problem(repair=repair, fatal=fatal))
        problem.count += 1
        if len(problem.first) < _MAX_KEPT:
            problem.first.append(offender)

    def refused(self, on_error: str) -> bool:
        """Return whether any problem makes the data set unusable.

        Args:
            on_error: Value of DATASETS.ON_ERROR: "stop", "skip" or "strict".
        """
        return any(problem.outcome(on_error) == "refused" for problem in self.problems.values())

    def ordered(self, on_error: str) -> list[tuple[str, Problem]]:
        """Return (kind, problem) pairs: refused problems first, then dropped, then fixed ones.

        Args:
            on_error: Value of DATASETS.ON_ERROR: "stop", "skip" or "strict".
        """
        order = ("refused", "dropped", "fixed")
        return sorted(self.problems.items(), key=lambda item: order.index(item[1].outcome(on_error)))

    def lines(self, on_error: str) -> list[str]:
        """Return one line per kind of problem with its outcome, count and first examples, sorted as in `ordered`.

        Args:
            on_error: Value of DATASETS.ON_ERROR: "stop", "skip" or "strict".
        """
        return [
            f"{p.outcome(on_error)}: {p.count} x {kind}: {'; '.join(p.first[:_MAX_SHOWN])}"
            + (", …" if p.count > _MAX_SHOWN else "")
            + (f" ({p.repair})" if p.outcome(on_error) == "fixed" else "")
            for kind, p in self.ordered(on_error)
        ]

    def raise_if_refused(self, source: str, on_error: str) -> None:
        """Raise an error with the whole report if the data set cannot be used.

        Args:
            source: Name of the data set in the message, usually its annotation file.
            on_error: Value of DATASETS.ON_ERROR: "stop", "skip" or "strict".

        Raises:
            DataError: At least one problem is refused.
        """
        if not self.refused(on_error):
            return
        fix = "Correct the file."
        if on_error == "strict" and not self.refused("stop"):
            option = "--on-error stop (DATASETS.ON_ERROR stop)"
            fix = f"Correct the file, or fix these problems automatically with {option}."
        elif not self.refused("skip"):
            fix = f"Correct the file, or leave the broken parts out with {SKIP_OPTION}."
        raise DataError("\n  ".join([f"{source} cannot be used:", *self.lines(on_error)]) + f"\n{fix}")
