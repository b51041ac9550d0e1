"""Measures the time of several calls under the same conditions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from pvt_det.profiling.memory import release_memory, synchronize


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
            elapsed = _time_call(call, device)
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


def _time_call(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the seconds that a call takes, or None where it runs out of GPU memory."""
    synchronize(device)
    start = time.perf_counter()
    try:
        call()
    except torch.OutOfMemoryError:
        return None
    synchronize(device)
    return time.perf_counter() - start
