"""What this machine has for training and prediction, and what to do about what it lacks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from pvt_det.weights.catalog import CATALOG
from pvt_det.weights.download import cache_folder

# "problem": something does not work; "note": something is slow, small or not there, which may be as wanted.
State = Literal["ok", "note", "problem"]

_GIB = 2**30
_SHARED_MEMORY = 1 * _GIB  # a few batches of 16 images of 1333×800 for each of several workers
_OPEN_FILES = 4096
_DISK = 10 * _GIB  # a run of a large detector keeps five checkpoints of 1 GB
_SET_UP = "python tools/setup_env.py --here"
_DATA_SETS = ("coco_2017_train", "coco_2017_val", "coco_2017_val_panoptic_separated", "ade20k_sem_seg_val")
_PLACES = ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root")


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        name: The thing.
        state: How it is.
        found: What there is, in a line.
        remedy: A command, or what else to do, where the state is not "ok".
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def examine(output: Path = Path()) -> Iterator[Finding]:
    """Look at everything, one thing after the other.

    Args:
        output: A folder on the disk that runs will be written to.
    """
    yield Finding(
        "system",
        "ok",
        f"{platform.platform()}, Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores",
    )
    yield from packages()
    yield detectron2()
    yield gpu()
    yield shared_memory(Path("/dev/shm"))
    yield open_files()
    yield disk("disk for runs", output, "write to a larger disk with --output DIR")
    yield disk("disk for weights", cache_folder(), "export PVT_DET_CACHE=/a/larger/disk")
    yield weights()
    yield data_sets()


def packages() -> Iterator[Finding]:
    """This package and those that it needs, where one is missing or of a wrong version."""
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires("pvt_det") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("pvt_det", "problem", "is run from a checkout, but not installed", _SET_UP)
        return
    needed = [need for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    versions = {need.name: _version(need.name) for need in needed}
    for need in needed:
        version = versions[need.name]
        if version is None or not need.specifier.contains(version, prereleases=True):
            found = f"{version}, needed is {need.specifier}" if version else "missing"
            yield Finding(need.name, "problem", found, f"python -m pip install '{need.name}{need.specifier}'")
    shown = ", ".join(f"{name} {versions.get(name)}" for name in ("torch", "torchvision", "timm", "hotcoco"))
    yield Finding("packages", "ok", f"pvt_det {_version('pvt_det')}, {shown}")


def detectron2() -> Finding:
    """Detectron2, and whether its compiled operators are there."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return Finding("detectron2", "problem", "missing: classification works, detection does not", _SET_UP)
    distribution = importlib.metadata.packages_distributions().get("detectron2", ["detectron2"])[0]
    found = f"{distribution} {_version(distribution) or 'of unknown version'} in {Path(spec.origin).parent}"
    if importlib.util.find_spec("detectron2._C") is not None:
        return Finding("detectron2", "ok", f"{found}, with compiled operators")
    return Finding("detectron2", "ok", f"{found}, pure Python: enough for every model of this package")


def gpu() -> Finding:
    """The GPUs that torch can use."""
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        shown = ", ".join(f"{card.name} with {card.total_memory / _GIB:.0f} GiB" for card in cards)
        return Finding("GPU", "ok", f"{shown}; CUDA {torch.version.cuda}")
    if shutil.which("nvidia-smi") is None:
        found = "none: training runs on the CPU, hours where a GPU takes minutes"
        return Finding("GPU", "note", found, "use a machine with an NVIDIA GPU")
    if torch.version.cuda is None:
        remedy = "python -m pip install --force-reinstall torch torchvision"
        return Finding("GPU", "problem", f"torch {torch.__version__} is built without CUDA", remedy)
    found = f"torch cannot use it: its CUDA {torch.version.cuda} may be newer than the driver, or no card is visible"
    return Finding("GPU", "problem", found, "nvidia-smi; echo $CUDA_VISIBLE_DEVICES")


def shared_memory(folder: Path) -> Finding:
    """The memory that loader processes hand images over in."""
    if not folder.is_dir():
        return Finding("shared memory", "note", f"{folder} is not here: this system has another kind", "none needed")
    free = shutil.disk_usage(folder).free
    found = f"{_size(free)} free in {folder}"
    if free >= _SHARED_MEMORY:
        return Finding("shared memory", "ok", found)
    remedy = "docker run --shm-size=8g …, or train with DATALOADER.NUM_WORKERS 0"
    return Finding("shared memory", "problem", f"{found}: loader processes will die of a bus error", remedy)


def open_files() -> Finding:
    """How many files a process may have open; loader processes take one for each tensor on its way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _OPEN_FILES:
        return Finding("open files", "ok", f"limit {'none' if soft == resource.RLIM_INFINITY else soft}")
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, 65536)
    return Finding("open files", "note", f"limit {soft}: low for many loader processes", f"ulimit -n {wanted}")


def disk(name: str, folder: Path, remedy: str) -> Finding:
    """Room on a folder's disk; the folder need not be there yet."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    found = f"{_size(free)} free for {folder.absolute()}"
    if not there.is_dir():
        return Finding(name, "problem", f"{there} is a file", remedy)
    if not os.access(there, os.W_OK):
        return Finding(name, "problem", f"{there} cannot be written to", remedy)
    return Finding(name, "ok", found) if free >= _DISK else Finding(name, "note", found, remedy)


def weights() -> Finding:
    """Published weights that are here already."""
    folder = cache_folder()
    here = {name: path for name, remote in CATALOG.items() if (path := folder / remote.cache_path).is_file()}
    if not here:
        return Finding("weights", "ok", f"none in {folder}: each file is fetched when it is first named")
    total = sum(path.stat().st_size for path in here.values())
    return Finding("weights", "ok", f"{', '.join(here)} in {folder}, {_size(total)}")


def data_sets() -> Finding:
    """The data sets of the published configs."""
    if importlib.util.find_spec("detectron2") is None:
        return Finding("data sets", "note", "not looked for without detectron2", _SET_UP)
    from detectron2.data import MetadataCatalog

    here, missing = [], {}
    for name in _DATA_SETS:
        metadata = MetadataCatalog.get(name)
        paths = [Path(str(value)) for key in _PLACES if (value := metadata.get(key))]
        if absent := [path for path in paths if not path.exists()]:
            missing[name] = str(absent[0])
        else:
            here.append(name)
    shown = ", ".join(here) or "none of the published configs'"
    if not missing:
        return Finding("data sets", "ok", shown)
    lacking = "; ".join(f"{name} lacks {path}" for name, path in missing.items())
    remedy = "put them there as datasets/README.md says, or export DETECTRON2_DATASETS=/the/folder/above"
    return Finding("data sets", "note", f"{shown} here; {lacking}", remedy)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.0f} MiB"
