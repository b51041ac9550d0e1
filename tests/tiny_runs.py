"""A detector small enough to train within a test, on generated shapes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pvt_det.engine.step import TrainStep
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
    """`KEY VALUE` words for `pvt-det train`, or `load_config`, that make a run tiny."""

    def words(output: Path, *, val: bool = False, **changes: object) -> list[str]:
        settings = TINY | {key.replace("__", "."): value for key, value in changes.items()}
        return tiny.tiny_words(shapes.parent, output, settings, val=val)

    return words


@pytest.fixture
def tiny_cfg(tiny_words, repo_root: Path):
    """A tiny run's config: `tiny_cfg(output, SOLVER__MAX_ITER=2)`."""
    from pvt_det.config import load_config

    def build(output: Path, *, val: bool = False, **changes: object):
        return load_config(repo_root / CONFIG, tiny_words(output, val=val, **changes))

    return build


@pytest.fixture(scope="session")
def untrained_run(shapes: Path, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a config and random weights that give 64 px images scores of all sizes."""
    import torch
    from detectron2.modeling import build_model

    from pvt_det.config import load_config

    folder = tmp_path_factory.mktemp("untrained")
    names = ["circle", "square", "triangle", "star"]
    settings = TINY | {
        "DATASETS.CLASS_NAMES": names,
        "MODEL.RETINANET.NUM_CLASSES": len(names),
        **tiny.shapes_keys(shapes.parent, "VAL"),
        "OUTPUT_DIR": folder,
    }
    cfg = load_config(repo_root / CONFIG, [str(word) for pair in settings.items() for word in pair])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.head.cls_score.weight, std=1.0)
    torch.nn.init.normal_(model.head.bbox_pred.weight, std=0.1)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def saved_weights():
    """The weights in a run's checkpoint."""
    from pvt_det.weights.reader import read_file

    def read(path: Path) -> dict:
        return read_file(path)["model"]

    return read


def stop_in(monkeypatch, call, number=signal.SIGTERM):
    """Send this process a signal within optimizer step `call`, counted from 1."""
    run, count = TrainStep.__call__, iter(range(1, 1000))

    def step(self, batches, *, asked_to_stop):
        if next(count) == call:
            os.kill(os.getpid(), number)
        return run(self, batches, asked_to_stop=asked_to_stop)

    monkeypatch.setattr(TrainStep, "__call__", step)
