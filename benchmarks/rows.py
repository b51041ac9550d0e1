"""Results of one implementation beside another."""

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
        seconds: Median time of a step; None where it ran out of GPU memory.
        speedup: This implementation's time as a multiple of pvt_det's, the median of the rounds' ratios; None where
            one of the two has no time.
        memory_mib: Peak memory of a step in MiB over the model and its images; None where it was not measured or
            exceeded the GPU's memory.
        memory_ratio: pvt_det's peak memory as a share of this implementation's, or None.
    """

    case: Case
    implementation: str
    seconds: float | None
    speedup: float | None
    memory_mib: float | None = None
    memory_ratio: float | None = None

    @property
    def images_per_s(self) -> float | None:
        """Images per second at the median time, or None."""
        return None if self.seconds is None else self.case.batch / self.seconds

    def as_dict(self) -> dict[str, object]:
        """Return the values under their names, for JSON."""
        own = {key: value for key, value in asdict(self).items() if key != "case"}
        return asdict(self.case) | own | {"images_per_s": self.images_per_s}


def build_row(case: Case, name: str, seconds: Mapping[str, list[float]], memory: Mapping[str, float]) -> Row:
    """Build the row of one implementation.

    Args:
        case: What was measured.
        name: The implementation.
        seconds: Times of all implementations, by name; an empty list where one has none.
        memory: Peak memory in MiB of the implementations that have one, by name.
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
    """Whether the peak of a step stands out: in inference on a CPU it is hardly above the noise of the heap."""
    return case.mode == "training" or device.type == "cuda"
