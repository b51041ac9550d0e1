"""The suites: trunks against their rivals, and growth with the image side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product

import torch

from benchmarks.implementations import OURS, Case, build, contestants
from benchmarks.measure import give_back, in_own_process, median_ratio, peak_memory, take_turns

GROWTH_MODELS = ("pvt_small", "pvt_v2_b2", "pvt_v2_b2_li", "resnet50")
GROWTH_SIDES = (224, 448, 672, 896, 1120, 1344, 1536)


@dataclass(frozen=True)
class Row:
    """One contestant's result in one case.

    Attributes:
        case: What was measured.
        contestant: Who.
        seconds: Median time of a step; None where a GPU's memory was not enough.
        speedup: How many times as fast `pvt_det` was; the median of the rounds' ratios; None where one has no times.
        memory_mib: Peak memory of a step over what the model and the images take; None where not measured, or where it
            was more than the GPU has.
        memory_share: `pvt_det`'s peak memory as a part of this contestant's, or None.
    """

    case: Case
    contestant: str
    seconds: float | None
    speedup: float | None
    memory_mib: float | None = None
    memory_share: float | None = None

    @property
    def images_per_s(self) -> float | None:
        """Images that a second is enough for; None where there is no time."""
        return None if self.seconds is None else self.case.batch / self.seconds

    def as_dict(self) -> dict[str, object]:
        """The row as plain values, for JSON."""
        own = {key: value for key, value in asdict(self).items() if key != "case"}
        return asdict(self.case) | own | {"images_per_s": self.images_per_s}


def make_row(case: Case, name: str, seconds: Mapping[str, list[float]], memory: Mapping[str, float]) -> Row:
    """One contestant's row from all contestants' times and peak memory, of which any may be missing."""
    own, ours = seconds[name], seconds[OURS]
    return Row(
        case,
        name,
        statistics.median(own) if own else None,
        median_ratio(own, ours) if own and ours else None,
        memory.get(name),
        memory[OURS] / memory[name] if {OURS, name} <= memory.keys() else None,
    )


def peaks(names: Iterable[str], measure: Callable[[str], float]) -> dict[str, float]:
    """Peak memory of each contestant, without those that run out of it."""
    found = {}
    for name in names:
        try:
            found[name] = measure(name)
        except torch.OutOfMemoryError:
            continue
    return found


def measures_memory(case: Case, device: torch.device) -> bool:
    """Whether a step's peak is worth measuring: in inference on a CPU it is hardly above the heap's own noise."""
    return case.mode == "training" or device.type == "cuda"


def run_trunk(cases: Iterable[Case], device: torch.device, repeats: int, compiled: bool) -> Iterator[Row]:
    """Compare all that can run each case, in time, and in memory: on a CPU in training only."""
    for case in cases:
        names = contestants(case, compiled)
        seconds = take_turns({name: build(name, case, device) for name in names}, device, repeats)
        give_back(device, compiled=compiled)
        measured = names if measures_memory(case, device) else []
        memory = peaks(measured, partial(memory_of, case=case, device=device))
        for name in names:
            yield make_row(case, name, seconds, memory)


def run_growth(
    models: Iterable[str], sides: Iterable[int], mode: str, dtype: str, device: torch.device, repeats: int
) -> Iterator[Row]:
    """Measure time and memory of square images of growing side, batch 1."""
    for model in models:
        for side in sides:
            case = Case(model, "pyramid", mode, dtype, 1, side, side)
            seconds = take_turns({OURS: build(OURS, case, device)}, device, repeats)
            give_back(device)
            yield make_row(case, OURS, seconds, peaks([OURS], partial(memory_of, case=case, device=device)))


def cross(
    models: Iterable[str],
    sizes: Iterable[tuple[int, int, int]],
    tasks: Iterable[str],
    modes: Iterable[str],
    dtypes: Iterable[str],
) -> list[Case]:
    """All combinations as cases; a size is (batch, height, width)."""
    everything = product(sizes, models, tasks, modes, dtypes)
    return [Case(model, task, mode, dtype, *size) for size, model, task, mode, dtype in everything]


def memory_of(contestant: str, case: Case, device: torch.device) -> float:
    """Peak memory of one step in a process of its own, in MiB over what model and images take."""
    return in_own_process(_step_memory, contestant, case, device, torch.get_num_threads())


def _step_memory(contestant: str, case: Case, device: torch.device, threads: int) -> float:
    torch.set_num_threads(threads)
    # A tiny step first, so that what libraries set up once is not taken for the step's own.
    build(contestant, replace(case, batch=1, height=224, width=224), device)()
    return peak_memory(build(contestant, case, device), device)
