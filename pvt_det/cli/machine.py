"""Checks of this machine for training and prediction, each with a fix for what is wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from pvt_det.utils.environment import BUSY, available_cores, busy_share
from pvt_det.utils.memory import open_file_limits
from pvt_det.utils.paths import cache_folder
from pvt_det.weights.catalog import CATALOG

# "problem": something does not work; "note": something is small, slow or missing, which may be intended.
State = Literal["ok", "note", "problem"]

_GIB = 2**30
_SHARED_MEMORY = 1 * _GIB  # a few batches of 16 images of 1333×800 for each of several workers
_OPEN_FILES = 4096
# A run of a large detector has two weight files of 0.3 GB, and for a moment two training states of 1 GB.
_DISK = 4 * _GIB
_SET_UP = "python tools/setup_env.py --here"
_DATA_SETS = ("coco_2017_train", "coco_2017_val", "coco_2017_val_panoptic_separated", "ade20k_sem_seg_val")
_PLACES = ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was checked, such as "GPU".
        state: "ok", "note" or "problem".
        found: What was found, in one line.
        fix: A command or an instruction, if the state is not "ok".
    """

    name: str
    state: State
    found: str
    fix: str = ""


def examine(output: Path = Path()) -> Iterator[Finding]:
    """Run all checks, one after the other.

    Args:
        output: A folder on the disk that runs will be written to.

    Yields:
        The result of each check.
    """
    yield Finding(
        "system",
        "ok",
        f"{platform.platform()}, Python {platform.python_version()}, {available_cores()} cores",
    )
    yield from packages()
    yield detectron2()
    yield gpu()
    yield load()
    yield shared_memory(Path("/dev/shm"))
    yield open_files()
    yield disk("disk for runs", output, "write to a larger disk with --output DIR")
    yield disk("disk for weights", cache_folder(), "export PVT_DET_CACHE=/a/larger/disk")
    yield weights()
    yield data_sets()


def packages() -> Iterator[Finding]:
    """Check for missing packages and wrong versions; yield each one, and a summary."""
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires("pvt_det") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("pvt_det", "problem", "used from a checkout, but not installed", _SET_UP)
        return
    needed = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    versions = {need.name: _version(need.name) for need in needed}
    for need in needed:
        version = versions[need.name]
        if version is None or not need.specifier.contains(version, prereleases=True):
            found = f"{version}, expected {need.specifier}" if version else "missing"
            yield Finding(need.name, "problem", found, f"python -m pip install '{need.name}{need.specifier}'")
    shown = ", ".join(f"{name} {versions.get(name)}" for name in ("torch", "torchvision", "timm", "hotcoco"))
    yield Finding("packages", "ok", f"pvt_det {_version('pvt_det')}, {shown}")


def detectron2() -> Finding:
    """Check that Detectron2 is installed, and whether it has compiled operators."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return Finding("detectron2", "problem", "missing: only classification works", _SET_UP)
    distribution = importlib.metadata.packages_distributions().get("detectron2", ["detectron2"])[0]
    found = f"{distribution} {_version(distribution) or '(unknown version)'} in {Path(spec.origin).parent}"
    if importlib.util.find_spec("detectron2._C") is not None:
        return Finding("detectron2", "ok", f"{found}, with compiled operators")
    return Finding("detectron2", "ok", f"{found}, pure Python, which is enough for all models of this package")


def gpu() -> Finding:
    """Check which GPUs PyTorch can use."""
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        shown = ", ".join(f"{device.name} with {device.total_memory / _GIB:.0f} GiB" for device in devices)
        return Finding("GPU", "ok", f"{shown}; CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Finding("GPU", "ok", "Apple GPU, used with --device mps or MODEL.DEVICE mps")
    if shutil.which("nvidia-smi") is None:
        found = "none: training runs on the CPU and takes hours instead of minutes"
        return Finding("GPU", "note", found, "use a machine with an NVIDIA GPU")
    if torch.version.cuda is None:
        fix = "python -m pip install --force-reinstall torch torchvision"
        return Finding("GPU", "problem", f"torch {torch.__version__} is built without CUDA", fix)
    found = (
        f"torch cannot use the GPU: its CUDA {torch.version.cuda} may be newer than the driver, or no GPU is visible"
    )
    return Finding("GPU", "problem", found, "nvidia-smi; echo $CUDA_VISIBLE_DEVICES")


def load() -> Finding:
    """Check whether other programs keep the processor busy."""
    share = busy_share()
    found = f"load average {share:.0%} of the cores"
    if share < BUSY:
        return Finding("load", "ok", found)
    found += ": other programs keep the processor busy, and training shares it with them"
    return Finding("load", "note", found, "end them, or train with one thread: OMP_NUM_THREADS=1 pvt-det train …")


def shared_memory(folder: Path) -> Finding:
    """Check the shared memory, through which data loader processes pass images.

    Args:
        folder: Where the shared memory is mounted.
    """
    if not folder.is_dir():
        return Finding(
            "shared memory",
            "note",
            f"{folder} does not exist: this system has a different kind of shared memory",
            "no fix needed",
        )
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free in {folder}"
    if free >= _SHARED_MEMORY:
        return Finding("shared memory", "ok", found)
    fix = "docker run --shm-size=8g …, or train with DATALOADER.NUM_WORKERS 0"
    return Finding("shared memory", "problem", f"{found}: data loader processes will crash with a bus error", fix)


def open_files() -> Finding:
    """Check how many files a process may open; data loader processes open one per tensor that they pass."""
    soft, hard = open_file_limits() or (math.inf, math.inf)
    if soft >= _OPEN_FILES:
        return Finding("open files", "ok", f"limit {'none' if math.isinf(soft) else soft}")
    wanted = _OPEN_FILES if math.isinf(hard) else min(hard, 65536)
    return Finding("open files", "note", f"limit {soft}: low for many data loader processes", f"ulimit -n {wanted}")


def disk(name: str, folder: Path, fix: str) -> Finding:
    """Check the free space on a folder's disk.

    Args:
        name: Name of the check.
        folder: The folder; it need not exist yet.
        fix: What to do if the disk is full or not writable.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    found = f"{_size(free)} free for {folder.absolute()}"
    if not existing.is_dir():
        return Finding(name, "problem", f"{existing} is a file", fix)
    if not os.access(existing, os.W_OK):
        return Finding(name, "problem", f"{existing} is not writable", fix)
    return Finding(name, "ok", found) if free >= _DISK else Finding(name, "note", found, fix)


def weights() -> Finding:
    """List the published weights that are already downloaded."""
    folder = cache_folder()
    present = {name: path for name, remote in CATALOG.items() if (path := folder / remote.cache_path).is_file()}
    if not present:
        return Finding("weights", "ok", f"none in {folder}: each file is downloaded on first use")
    total = sum(path.stat().st_size for path in present.values())
    return Finding("weights", "ok", f"{', '.join(present)} in {folder}, {_size(total)}")


def data_sets() -> Finding:
    """Check for the data sets of the published configs."""
    if importlib.util.find_spec("detectron2") is None:
        return Finding("data sets", "note", "not checked without detectron2", _SET_UP)
    from detectron2.data import MetadataCatalog

    present, missing = [], {}
    for name in _DATA_SETS:
        metadata = MetadataCatalog.get(name)
        paths = [Path(str(value)) for key in _PLACES if (value := metadata.get(key))]
        if absent := [path for path in paths if not path.exists()]:
            missing[name] = str(absent[0])
        else:
            present.append(name)
    shown = ", ".join(present) or "none of the published configs' data sets"
    if not missing:
        return Finding("data sets", "ok", shown)
    incomplete = "; ".join(f"{name} is missing {path}" for name, path in missing.items())
    fix = "prepare them as described in datasets/README.md, or export DETECTRON2_DATASETS=/path/to/datasets"
    return Finding("data sets", "note", f"found {shown}; {incomplete}", fix)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.0f} MiB"
