"""Measures several implementations under the same conditions."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path

import torch

from pvt_det.profiling import Case, time_call

Size = tuple[int, int, int]


def build_cases(
    models: Iterable[str], sizes: Iterable[Size], tasks: Iterable[str], modes: Iterable[str], dtypes: Iterable[str]
) -> list[Case]:
    """Combine models, sizes `(batch, height, width)`, tasks, modes and dtypes to one case each."""
    combinations = product(sizes, models, tasks, modes, dtypes)
    return [Case(model, task, mode, dtype, *size) for size, model, task, mode, dtype in combinations]


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Time each call `repeats` times, all calls once per round, so that other load on the machine slows all alike.

    Args:
        calls: The calls, by name.
        device: The device that the calls run on; a GPU is synchronized before and after each call.
        repeats: Number of rounds that are timed.
        warm_up: Run one more round first that is not timed.

    Returns:
        The seconds of each round, by the name of the call. A call that runs out of GPU memory is not repeated and has
        no times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    failed = set()
    for turn in range(0 if warm_up else 1, repeats + 1):
        for name, call in calls.items():
            if name in failed:
                continue
            elapsed = _time_if_it_fits(call, device)
            if elapsed is None:
                failed.add(name)
                seconds[name] = []
                release_memory(device)
            elif turn > 0:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """Return the median over the rounds of `slower / faster`, a speed-up that load on the machine hardly changes.

    Args:
        slower: Seconds of each round of one call.
        faster: Seconds of the same rounds of another call.
    """
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def measure_peaks(names: Iterable[str], measure: Callable[[str], float]) -> dict[str, float]:
    """Measure the peak memory of each name in MiB, and leave out those that run out of GPU memory.

    Args:
        names: What to measure.
        measure: Returns the peak memory of a name in MiB.
    """
    found = {}
    for name in names:
        try:
            found[name] = measure(name)
        except torch.OutOfMemoryError:
            continue
    return found


def private_memory() -> int | None:
    """Return the bytes that this process shares with no other, or None where the system is not Linux.

    After a fork these are the pages that the process has written to.
    """
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return None
    lines = rollup.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def release_memory(device: torch.device, *, compiled: bool = False) -> None:
    """Return unused GPU memory, which PyTorch keeps otherwise, to other processes.

    Args:
        device: Nothing is done on a CPU.
        compiled: Reset `torch.compile` too, with the memory of its CUDA graphs. Otherwise the compiler would take the
            next image size for a dynamic one, and make a slower program for all sizes.
    """
    if compiled:
        torch.compiler.reset()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _time_if_it_fits(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the seconds that a call takes, or None where it runs out of GPU memory."""
    try:
        return time_call(call, device)
    except torch.OutOfMemoryError:
        return None
