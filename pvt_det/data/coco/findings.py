"""What a check of a data set found: each kind of problem with its count, its first offenders and what becomes of it.

Every problem has one outcome, decided by what it is and by DATASETS.ON_ERROR: fixed, dropped, or refused.

| DATASETS.ON_ERROR | what has one right value | what is broken | what leaves nothing to go on with |
|-------------------|--------------------------|----------------|-----------------------------------|
| skip              | fixed                    | dropped        | refused                           |
| stop (default)    | fixed                    | refused        | refused                           |
| strict            | refused                  | refused        | refused                           |
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pvt_det.errors import DataError

_SHOWN = 3
_KEPT = 24


@dataclass
class Problem:
    """One kind of problem.

    Attributes:
        count: how many images or annotations have it.
        first: the first few of them, by id or file.
        repair: how it is fixed; "" where it cannot be.
        fatal: leaving the offenders out is no way on.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    repair: str = ""
    fatal: bool = False

    def outcome(self, on_error: str) -> str:
        """What becomes of it under DATASETS.ON_ERROR: "fixed", "dropped" or "refused"."""
        if self.fatal or on_error == "strict":
            return "refused"
        if self.repair:
            return "fixed"
        return "dropped" if on_error == "skip" else "refused"


class Findings:
    """Collects the problems of one data set, so that all are told in one report."""

    def __init__(self) -> None:
        self.problems: dict[str, Problem] = {}

    def add(self, kind: str, offender: str, *, repair: str = "", fatal: bool = False) -> None:
        """Count one offender.

        Args:
            kind: the problem, in words that name its key or cause.
            offender: the id or file, such as "annotation 7" or "image 3: why".
            repair: how it is fixed, where it can be.
            fatal: refuse the data set even where broken parts are skipped.
        """
        problem = self.problems.setdefault(kind, Problem(repair=repair, fatal=fatal))
        problem.count += 1
        if len(problem.first) < _KEPT:
            problem.first.append(offender)

    def refused(self, on_error: str) -> bool:
        """Whether the data set cannot be used under `on_error`."""
        return any(problem.outcome(on_error) == "refused" for problem in self.problems.values())

    def ordered(self, on_error: str) -> list[tuple[str, Problem]]:
        """Kinds of problems, those with the gravest outcome first."""
        order = ("refused", "dropped", "fixed")
        return sorted(self.problems.items(), key=lambda item: order.index(item[1].outcome(on_error)))

    def lines(self, on_error: str) -> list[str]:
        """One line a problem with its outcome, in the order of `ordered`."""
        return [
            f"{p.outcome(on_error)}: {p.count} x {kind}: {'; '.join(p.first[:_SHOWN])}"
            + (", …" if p.count > _SHOWN else "")
            + (f" ({p.repair})" if p.outcome(on_error) == "fixed" else "")
            for kind, p in self.ordered(on_error)
        ]

    def raise_if_refused(self, source: str, on_error: str) -> None:
        """Raise DataError with the whole report where the data set cannot be used.

        Raises:
            DataError: there is a problem whose outcome is "refused".
        """
        if not self.refused(on_error):
            return
        way_out = "Correct the file."
        if on_error == "strict" and not self.refused("stop"):
            way_out = "Correct the file, or let these be fixed with DATASETS.ON_ERROR stop."
        elif not self.refused("skip"):
            way_out = "Correct the file, or leave the broken parts out with DATASETS.ON_ERROR skip."
        raise DataError("\n  ".join([f"{source} cannot be used as it is:", *self.lines(on_error)]) + f"\n{way_out}")
