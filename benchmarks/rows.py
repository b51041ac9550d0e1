"""Results of a comparison, one row per case and implementation."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from benchmarks.implementations import OURS
from benchmarks.measure import median_ratio
from pvt_det.profiling import Case


@dataclass(frozen=True)
class Row:
    """The result of one implementation in one case.

    Attributes:
        case: What was measured.
        implementation: Name of the implementation.
        seconds: Median time of a step; None if it ran out of GPU memory.
        speedup: This implementation's time divided by pvt_det's, as the median of the rounds' ratios; None if either
            of them has no time.
        memory_mib: Peak memory in MiB of a step on top of the model and its images; None if it was not measured or
            exceeded the GPU's memory.
        memory_ratio: Peak memory of pvt_det divided by this implementation's, or None.
    """

    case: Case
    implementation: str
    seconds: float | None
    speedup: float | None
    memory_mib: float | None = None
    memory_ratio: float | None = None

    @property
    def images_per_s(self) -> float | None:
        """Images per second at the median time, or None if there is no time."""
        return None if self.seconds is None else self.case.batch / self.seconds

    def as_dict(self) -> dict[str, object]:
        """Return the attributes by name, for JSON."""
        own = {key: value for key, value in asdict(self).items() if key != "case"}
        return asdict(self.case) | own | {"images_per_s": self.images_per_s}


def build_row(case: Case, name: str, seconds: Mapping[str, list[float]], memory: Mapping[str, float]) -> Row:
    """Build the row of one implementation.

    Args:
        case: What was measured.
        name: Name of the implementation.
        seconds: Times of all implementations by name. The list of an implementation may be empty.
        memory: Peak memory in MiB by name, of the implementations that were measured.
    """
    own, ours = seconds[name], seconds[OURS]
    return Row(
        case,
        name,
        statistics.median(own) if own else None,
        median_ratio(own, ours) if own and ours else None,
        memory.get(name),
        memory[OURS] / memory[name] if {OURS, name} <= memory.keys() else None,
    )


def measures_memory(case: Case, device: torch.device) -> bool:
    """Return whether the peak memory of a step is meaningful.

    In inference on a CPU, the peak is hardly above the noise of the heap.

    Args:
        case: What to measure.
        device: Device to measure on.
    """
    return case.mode == "training" or device.type == "cuda"
