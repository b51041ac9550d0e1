"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# One thread for each test process and what it starts: pytest's workers are the parallelism. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.tiny_runs import saved_weights, shapes, tiny_cfg, tiny_words, untrained_run  # noqa: F401  (fixtures)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the small real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("PVT_DET_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"{folder} is not here: the small real data sets are needed")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _catalogs() -> Iterator[None]:
    """Forget the data sets that a module registered: a name must not depend on which tests ran before."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Put back what benchmarks set in their process."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
