"""Fixtures for training a tiny detector on generated shapes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.drills import tiny

CONFIG = "configs/retinanet_pvt_tiny.yaml"
TINY = tiny.SETTINGS | {
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": [3],
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "SEED": 3,
}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.shapes_keys(folder, "TRAIN")
    return folder / "shapes"


@pytest.fixture
def tiny_words(shapes: Path):
    """Build the `KEY VALUE` arguments of a tiny run, for `pvt-det train` or `load_config`."""

    def words(output: Path, *, val: bool = False, **changes: object) -> list[str]:
        settings = TINY | {key.replace("__", "."): value for key, value in changes.items()}
        return tiny.tiny_words(shapes.parent, output, settings, val=val)

    return words


@pytest.fixture
def tiny_cfg(tiny_words, repo_root: Path):
    """Build the config of a tiny run: `tiny_cfg(output, SOLVER__MAX_ITER=2)`."""
    from pvt_det.config import load_config

    def build(output: Path, *, val: bool = False, **changes: object):
        return load_config(repo_root / CONFIG, tiny_words(output, val=val, **changes))

    return build


@pytest.fixture(scope="session")
def untrained_run(shapes: Path, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder with random weights that predict low and high scores for 64-pixel images."""
    settings = TINY | tiny.shapes_keys(shapes.parent, "VAL")
    return tiny.write_untrained_run(tmp_path_factory.mktemp("untrained"), repo_root / CONFIG, settings)


@pytest.fixture
def saved_weights():
    """Read the weights of a checkpoint."""
    from pvt_det.weights.reader import read_file

    def read(path: Path) -> dict:
        return read_file(path)["model"]

    return read


def stop_in(monkeypatch, call, number=signal.SIGTERM):
    """Send this process a signal during optimizer step `call`, counted from 1."""
    from pvt_det.engine.step import TrainStep

    run, count = TrainStep.__call__, iter(range(1, 1000))

    def step(self, batches, *, stop_requested):
        if next(count) == call:
            os.kill(os.getpid(), number)
        return run(self, batches, stop_requested=stop_requested)

    monkeypatch.setattr(TrainStep, "__call__", step)
