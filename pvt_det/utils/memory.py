"""Memory of this process, as far as the operating system reports it."""

from __future__ import annotations

import platform

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_resident_memory() -> int | None:
    """Return the peak resident memory of this process in bytes, or None on Windows."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS reports bytes, other systems report KiB.
    return peak if platform.system() == "Darwin" else 1024 * peak


def open_file_limits() -> tuple[float, float] | None:
    """Return how many files this process may open, and how far it may raise that, or None on Windows.

    No limit is `math.inf`.
    """
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _limit(soft), _limit(hard)


def _limit(value: int) -> float:
    return float("inf") if value == resource.RLIM_INFINITY else value
