"""Latency of a model's steps, and the peak memory of one."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from pvt_det.profiling.case import Case
from pvt_det.profiling.memory import measure_peaks, release_memory
from pvt_det.profiling.models import find_weights
from pvt_det.profiling.step import build_model_step, step_peak
from pvt_det.profiling.timing import time_interleaved

EAGER, COMPILED = "eager", "compiled"


@dataclass(frozen=True)
class Latency:
    """Time and memory of one case.

    Attributes:
        case: What was measured.
        execution: "eager", or "compiled" by `torch.compile`.
        weights: The run's weights file, or "random".
        median_s: Median time of a step in seconds; None where it ran out of GPU memory.
        min_s: Shortest time of a step in seconds, or None.
        peak_mib: Memory in MiB by which a step exceeds the model and its images, or None.
    """

    case: Case
    execution: str
    weights: str
    median_s: float | None
    min_s: float | None
    peak_mib: float | None

    @property
    def images_per_s(self) -> float | None:
        """Images per second at the median time, or None."""
        return None if self.median_s is None else self.case.batch / self.median_s

    def as_dict(self) -> dict[str, object]:
        """Return the values under their names, for JSON."""
        own = {key: value for key, value in asdict(self).items() if key != "case"}
        return asdict(self.case) | own | {"images_per_s": self.images_per_s}


def measure_latency(
    cases: Iterable[Case], device: torch.device, repeats: int, *, compiled: bool = False
) -> Iterator[Latency]:
    """Measure time and peak memory of each case.

    Args:
        cases: What to measure.
        device: Where to measure it.
        repeats: Number of steps that are timed, after one that is not.
        compiled: Measure each case compiled as well. For trunks and classifiers only.

    Raises:
        CheckpointError: The weights of a run are damaged or do not fit its config.
    """
    for case in cases:
        yield from _measure_case(case, device, repeats, [EAGER, COMPILED] if compiled else [EAGER])


def _measure_case(case: Case, device: torch.device, repeats: int, executions: list[str]) -> Iterator[Latency]:
    weights = Path(find_weights(case.model)).name or "random"
    builds = {name: partial(build_model_step, device=device, compiled=name == COMPILED) for name in executions}
    seconds = time_interleaved({name: build(case) for name, build in builds.items()}, device, repeats)
    release_memory(device, compiled=COMPILED in executions)
    peaks = measure_peaks(executions, lambda name: step_peak(builds[name], case, device, compiled=name == COMPILED))
    for name, times in seconds.items():
        median, least = (statistics.median(times), min(times)) if times else (None, None)
        yield Latency(case, name, weights, median, least, peaks.get(name))
