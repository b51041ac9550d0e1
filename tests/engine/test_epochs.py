"""Epochs become iterations when the number of training images is known."""

from __future__ import annotations

import json
import logging

import pytest

from pvt_det.config import load_config
from pvt_det.data.loader import build_detection_train_loader
from pvt_det.data.sets import register_datasets
from pvt_det.engine.epochs import resolve_epochs
from tests.command_line import run_command
from tests.tiny_runs import CONFIG


@pytest.fixture
def resolved(tiny_cfg, tmp_path):
    """Build the config of a run with some epochs on the shapes, resolved, and the number of its training images."""

    def build(**changes):
        cfg = tiny_cfg(tmp_path / "run", **changes)
        register_datasets(cfg)
        resolve_epochs(cfg)
        return cfg, len(build_detection_train_loader(cfg).dataset)

    return build


def test_schedule_keeps_its_shape(resolved):
    cfg, images = resolved(
        SOLVER__EPOCHS=30,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__ACCUMULATE_STEPS=2,
        SOLVER__MAX_ITER=12,
        SOLVER__STEPS=[8, 11],
        SOLVER__WARMUP_ITERS=5,
        SOLVER__CHECKPOINT_PERIOD=4,
        TEST__EVAL_PERIOD=3,
    )
    iterations = -(-30 * images // 4)
    assert (0, iterations) == (cfg.SOLVER.EPOCHS, cfg.SOLVER.MAX_ITER)
    assert list(cfg.SOLVER.STEPS) == [round(iterations * 8 / 12), round(iterations * 11 / 12)]
    # The fourth period ends at the end or after it, so that there is only one evaluation there.
    assert -(-iterations * 3 // 12) == cfg.TEST.EVAL_PERIOD
    # More iterations do not change these.
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD) == (5, 4)


def test_short_run(resolved, caplog):
    with caplog.at_level(logging.INFO):
        cfg, images = resolved(
            SOLVER__EPOCHS=1, SOLVER__MAX_ITER=90_000, SOLVER__STEPS=[60_000], SOLVER__WARMUP_ITERS=500
        )
    iterations = -(-images // cfg.SOLVER.IMS_PER_BATCH)
    assert iterations < 10
    assert (iterations, 0, 1) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD)
    assert (
        f"1 epoch of {images} images in batches of {cfg.SOLVER.IMS_PER_BATCH}: SOLVER.MAX_ITER {iterations}"
        in caplog.text
    )


def test_without_epochs_nothing_changes(resolved, tiny_cfg, tmp_path):
    cfg, _ = resolved()
    assert cfg.SOLVER == tiny_cfg(tmp_path / "run").SOLVER


def test_train_for_epochs(repo_root, tiny_words, tmp_path, capsys):
    words = tiny_words(tmp_path / "run", SOLVER__STEPS=[])
    position = words.index("SOLVER.MAX_ITER")
    del words[position : position + 2]
    options = ["--epochs", "1", "--batch-size", "4", "--lr", "0.001"]
    # The batch size is given twice, with the same value.
    words[words.index("SOLVER.IMS_PER_BATCH") + 1] = "4"
    assert run_command("train", [repo_root / CONFIG, *options, *words]) == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert (
        "--epochs 1 sets SOLVER.EPOCHS; --batch-size 4 sets SOLVER.IMS_PER_BATCH; --lr 0.001 sets SOLVER.BASE_LR" in log
    )
    assert "1 epoch of" in log

    cfg = load_config(tmp_path / "run/config.yaml")
    last = json.loads((tmp_path / "run/metrics.json").read_text().splitlines()[-1])
    assert cfg.SOLVER.EPOCHS == 0
    assert last["iteration"] + 1 == cfg.SOLVER.MAX_ITER
