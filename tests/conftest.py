"""Fixtures shared by all tests.

This module imports torch in its fixtures, because pytest-xdist also imports it in a process that runs no tests.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# One thread per test process and its children, because pytest runs several workers. Set before importing torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compile in the test process. New processes would first import torch for seconds.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest

from tests.exported_models import (  # noqa: F401  (fixtures)
    exported,
    exported_program,
    mask_rcnn_run,
    panoptic_small_run,
    retinanet_small_run,
    semantic_run,
    shared_once,
    smallest_variant,
)
from tests.tiny_runs import saved_weights, shapes, tiny_cfg, tiny_words, untrained_run  # noqa: F401  (fixtures)

# Collecting garbage takes a fifth of the time in which modules are imported. Tests collect it again.
gc.disable()

ROOT = Path(__file__).parents[1]


def pytest_collection_finish() -> None:
    """Collect garbage from now on, without searching what was imported for it."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow tests first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def _no_fsync() -> Iterator[None]:
    """Let files reach the disk when the system likes, because tests do not survive a power failure anyway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # still fails for a closed file
        yield


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the small real data sets. Tests that need it are skipped if it does not exist."""
    folder = Path(os.environ.get("PVT_DET_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the small real data sets in {folder}")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _catalogs() -> Iterator[None]:
    """Remove the data sets that a test module registered, so that tests do not depend on their order."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restore the number of threads, which benchmarks change."""
    import torch

    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that runs OpenVINO. `make test` runs these in processes of their own.

    After them, a signal ends the process with a segmentation fault on some Linux kernels, seen with AMX.
    """
    if "exported" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.openvino)
