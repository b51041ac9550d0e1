"""A detector small enough to train within a test, on generated shapes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pvt_det.data.shapes import write_shapes
from pvt_det.engine.step import TrainStep

CONFIG = "configs/retinanet_pvt_tiny.yaml"
# 3.6 M parameters, half a second an iteration; PVT v2 takes 64 pixels as well as any other size.
TINY = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.PVT.VARIANT": "pvt_v2_b0",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": [3],
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "TEST.EVAL_PERIOD": 0,
    "SEED": 3,
}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=3, image_size=64)


@pytest.fixture
def tiny_words(shapes: Path, repo_root: Path):
    """`KEY VALUE` words for `tools/train_net.py`, or `load_config`, that make a run tiny."""

    def words(output: Path, *, val: bool = False, **changes: object) -> list[str]:
        data = {
            "DATASETS.TRAIN_JSON": shapes / "annotations/instances_train.json",
            "DATASETS.TRAIN_IMAGES": shapes / "train",
            "OUTPUT_DIR": output,
        }
        if val:
            data["DATASETS.VAL_JSON"] = shapes / "annotations/instances_val.json"
            data["DATASETS.VAL_IMAGES"] = shapes / "val"
        settings = TINY | data | {key.replace("__", "."): value for key, value in changes.items()}
        return [str(word) for pair in settings.items() for word in pair]

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
        "DATASETS.VAL_JSON": shapes / "annotations/instances_val.json",
        "DATASETS.VAL_IMAGES": shapes / "val",
        "MODEL.RETINANET.NUM_CLASSES": len(names),
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
