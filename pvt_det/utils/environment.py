"""Describe the machine and software that produced a result."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "detectron2", "sal-detectron2", "numpy", "pillow")
_PACKAGE = Path(__file__).parents[1]
# Name of `code_fingerprint` in fingerprints.
CODE = "code version"
# Value of `busy_share` from which on other programs slow down training.
BUSY = 0.9


def environment(device: torch.device) -> dict[str, object]:
    """Describe everything that a result depends on: device, threads, library versions, commit and date.

    Args:
        device: The device that computed the result.

    Returns:
        Values that can be saved as JSON, by name.
    """
    import torch

    named = {"cuda": lambda: torch.cuda.get_device_name(device), "mps": lambda: f"Apple GPU of {_processor()}"}
    return {
        "device": named.get(device.type, _processor)(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": library_versions(),
        "commit": _running_commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that a result depends on, by their names."""
    return {library: found for library in _LIBRARIES if (found := _version(library))}


def code_version() -> dict[str, str]:
    """Return the version of this package, and the commit of its checkout (again the version if it is installed)."""
    # The name is not imported above, because the package imports this module.
    version_of_package: str = import_module(_PACKAGE.name).__version__
    return {"version": version_of_package, "commit": _running_commit()}


@cache
def _running_commit() -> str:
    """Return the commit or version of the code that this process runs. It is looked up once."""
    return commit_or_version(_PACKAGE)


def commit_or_version(package: Path) -> str:
    """Return the commit of a package's checkout, or its version if the package is installed.

    An installed package is often inside another repository, for example in a virtual environment in a user's project.
    The commit of that repository is unrelated to the package.

    Args:
        package: The folder of the package. In a checkout it is at the root of the repository and tracked there.
    """
    root = package.parent
    toplevel = _git(root, "rev-parse", "--show-toplevel")
    is_root = bool(toplevel) and Path(toplevel).resolve() == root.resolve()
    is_checkout = is_root and bool(_git(root, "ls-files", "--error-unmatch", f"{package.name}/__init__.py"))
    return (is_checkout and _git(root, "describe", "--always", "--dirty")) or _version(package.name) or "unknown"


@cache
def code_fingerprint() -> str:
    """Return the commit or version of this package, and a digest of its source files."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{_running_commit()}, SHA-256 {digest.hexdigest()[:16]}…"


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    # Only Linux limits a process to some of the cores.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_share() -> float:
    """Return the share of the machine's processor time that all programs asked for in the last minute.

    It is the load average divided by the number of cores: 1.0 if every core was busy, more if programs had to wait.
    0.0 on systems without a load average.
    """
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of a git command, or "" if it fails or git is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()


@cache
def _version(distribution: str) -> str:
    """Return the version of a distribution, or "" if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.processor()
