"""The suites `trunk` (several implementations) and `growth` (cost as the image side grows)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.implementations import COMPILED, OURS, RESNET, build_step, list_implementations
from benchmarks.measure import measure_peaks, release_memory, time_interleaved
from benchmarks.rows import Row, build_row, measures_memory
from pvt_det.profiling import Case, peak_memory, run_in_own_process

GROWTH_MODELS = ("pvt_small", "pvt_v2_b2", "pvt_v2_b2_li", RESNET)
GROWTH_SIDES = (224, 448, 672, 896, 1120, 1344, 1536)


def run_trunk(cases: Iterable[Case], device: torch.device, repeats: int, *, compiled: bool) -> Iterator[Row]:
    """Compare the time of all implementations of each case, and their memory where it is meaningful.

    Args:
        cases: What to measure. `model` is a variant of PVT.
        device: Device to measure on.
        repeats: Number of timed rounds.
        compiled: Also measure this package's trunk with `torch.compile`.

    Yields:
        One row per case and implementation.
    """
    for case in cases:
        names = list_implementations(case, compiled)
        yield from _run_case(case, names, device, repeats, memory=measures_memory(case, device))


def run_growth(
    models: Iterable[str], sides: Iterable[int], mode: str, dtype: str, device: torch.device, repeats: int
) -> Iterator[Row]:
    """Measure the time and memory of one square image for several image sides.

    Args:
        models: Variants of PVT, or "resnet50".
        sides: Sides of the image in pixels.
        mode: "inference" or "training".
        dtype: "fp32" or "bf16".
        device: Device to measure on.
        repeats: Number of timed steps.

    Yields:
        One row per model and side.
    """
    for model in models:
        for side in sides:
            case = Case(model, "pyramid", mode, dtype, 1, side, side)
            yield from _run_case(case, [OURS], device, repeats, memory=True)


def _run_case(case: Case, names: list[str], device: torch.device, repeats: int, *, memory: bool) -> Iterator[Row]:
    seconds = time_interleaved({name: build_step(case, name, device) for name in names}, device, repeats)
    release_memory(device, compiled=COMPILED in names)
    measured = names if memory else []
    peaks = measure_peaks(measured, partial(run_in_own_process, _step_peak, case, device))
    for name in names:
        yield build_row(case, name, seconds, peaks)


def _step_peak(case: Case, device: torch.device, implementation: str) -> float:
    """Measure a step without its compilation and without one-time allocations of libraries."""
    if implementation != COMPILED:
        build_step(replace(case, batch=1, height=224, width=224), implementation, device)()
        return peak_memory(build_step(case, implementation, device), device)
    # A different image size would compile a program for dynamic sizes. The second run records CUDA graphs.
    step = build_step(case, implementation, device)
    for _ in range(2):
        step()
    return peak_memory(step, device)
