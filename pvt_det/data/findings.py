"""What a check of a data set found: each kind of problem with its count and its first offenders."""

from __future__ import annotations

from dataclasses import dataclass, field

from pvt_det.errors import DataError

_SHOWN = 3


@dataclass
class Problem:
    """One kind of problem.

    Attributes:
        count: how many images or annotations have it.
        first: the first few of them, by id or file.
        repair: what was done about it; "" where it was not repaired.
        fatal: leaving the offenders out is no way on.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    repair: str = ""
    fatal: bool = False


class Findings:
    """Collects the problems of one data set, so that all are told in one report."""

    def __init__(self) -> None:
        self.problems: dict[str, Problem] = {}

    def add(self, kind: str, offender: str, *, repair: str = "", fatal: bool = False) -> None:
        """Count one offender.

        Args:
            kind: the problem, in words that name its key or cause.
            offender: the id or file.
            repair: what was done, where the problem could be repaired.
            fatal: refuse the data set even where broken parts are skipped.
        """
        problem = self.problems.setdefault(kind, Problem(repair=repair, fatal=fatal))
        problem.count += 1
        if len(problem.first) < _SHOWN:
            problem.first.append(offender)

    def refused(self, on_error: str) -> bool:
        """Whether the data set cannot be used under `on_error` "strict" or "skip"."""
        return any(p.fatal or (not p.repair and on_error == "strict") for p in self.problems.values())

    def lines(self) -> list[str]:
        """One line a problem, unrepaired ones first."""
        ordered = sorted(self.problems.items(), key=lambda item: bool(item[1].repair))
        return [
            f"{p.count} x {kind}: {'; '.join(p.first)}{', …' if p.count > len(p.first) else ''}"
            + (f" ({p.repair})" if p.repair else "")
            for kind, p in ordered
        ]

    def raise_if_refused(self, source: str, on_error: str) -> None:
        """Raise DataError with the whole report where the data set cannot be used.

        Raises:
            DataError: there is a fatal problem, or an unrepaired one under "strict".
        """
        if not self.refused(on_error):
            return
        can_skip = not any(p.fatal for p in self.problems.values())
        way_out = "Correct the file" + (
            ", or leave the broken parts out with DATASETS.ON_ERROR skip." if can_skip else "."
        )
        raise DataError("\n  ".join([f"{source} cannot be used as it is:", *self.lines()]) + f"\n{way_out}")
