"""A run that is stopped and resumed gives bit-identical weights."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from pvt_det.api import train
from pvt_det.errors import CheckpointError, ConfigError, Interrupted
from tests.tiny_runs import stop_in

RESUME = {"resume": True, "resume_command": "pvt-det train --resume"}
EMA = {"SOLVER__EMA__ENABLED": True, "SOLVER__EMA__DECAY": 0.9}


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    different = [name for name in weights if not torch.equal(weights[name], others[name])]
    assert not different


@pytest.mark.parametrize(
    ("cut", "settings"),
    [
        (2, {"SOLVER__AMP__ENABLED": True, "SOLVER__OPTIMIZER": "sgd"}),
        # Slow because CPUs have no fast kernels for fp16 convolutions.
        pytest.param(
            1,
            {
                "SOLVER__AMP__ENABLED": True,
                "SOLVER__AMP__PRECISION": "fp16",
                "SOLVER__MAX_ITER": 2,
                "SOLVER__WARMUP_ITERS": 1,
                "SOLVER__STEPS": [1],
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["bf16-sgd", "fp16"],
)
def test_resumed_run_equals_uninterrupted_run(tmp_path, tiny_cfg, saved_weights, monkeypatch, cut, settings):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny_cfg(whole, **settings | {"DATALOADER__NUM_WORKERS": 0}))
    with monkeypatch.context() as patch:
        stop_in(patch, cut)
        with pytest.raises(Interrupted):
            train(tiny_cfg(parts, **settings))
    torch.manual_seed(99)
    train(tiny_cfg(parts, **settings), **RESUME)
    assert_same(saved_weights(whole / "model_final.pth"), saved_weights(parts / "model_final.pth"))


def test_evaluation_during_training_changes_no_weights(tmp_path, tiny_cfg, saved_weights):
    plain, evaluated = tmp_path / "plain", tmp_path / "evaluated"
    train(tiny_cfg(plain))
    settings = {"TEST__EVAL_PERIOD": 2, "TEST__VALIDATION_LOSS": True, "SOLVER__CHECKPOINT_KEEP": 2}
    train(tiny_cfg(evaluated, val=True, **settings))
    assert_same(saved_weights(plain / "model_final.pth"), saved_weights(evaluated / "model_final.pth"))
    # The state is saved before an evaluation, even if no checkpoint is due.
    assert (evaluated / "model_0000001.pth").exists()


def test_random_seed_is_kept_on_resume(tmp_path, tiny_cfg, saved_weights, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in(patch, 1)
        with pytest.raises(Interrupted):
            train(tiny_cfg(tmp_path / "a", SEED=-1, SOLVER__MAX_ITER=2, SOLVER__STEPS=[]))
    train(tiny_cfg(tmp_path / "a", SEED=-1, SOLVER__MAX_ITER=2, SOLVER__STEPS=[]), **RESUME)
    seed = json.loads((tmp_path / "a/results.json").read_text())["seed"]
    train(tiny_cfg(tmp_path / "b", SEED=seed, SOLVER__MAX_ITER=2, SOLVER__STEPS=[]))
    assert_same(saved_weights(tmp_path / "a/model_final.pth"), saved_weights(tmp_path / "b/model_final.pth"))


def test_resume_rejects_different_seed_and_model(tmp_path, tiny_cfg):
    train(tiny_cfg(tmp_path, SOLVER__MAX_ITER=1, SOLVER__STEPS=[]))
    with pytest.raises(ConfigError, match="trained with SEED 3"):
        train(tiny_cfg(tmp_path, SEED=4), **RESUME)
    with pytest.raises(CheckpointError, match=r"does not fit the model.*config\.yaml"):
        train(tiny_cfg(tmp_path, MODEL__FPN__OUT_CHANNELS=64), **RESUME)


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_finished_run_trains_on_exactly(tmp_path, tiny_cfg, saved_weights, version):
    whole, longer, settings = tmp_path / "whole", tmp_path / "longer", EMA | {"SOLVER__STEPS": []}
    train(tiny_cfg(whole, **settings))
    train(tiny_cfg(longer, **settings, SOLVER__MAX_ITER=2))
    state = longer / "model_0000001.pth"
    if version == "earlier":
        # The training state was in `model_final.pth`.
        state.rename(longer / "model_final.pth")
        (longer / "checkpoints.json").unlink()
        (longer / "last_checkpoint").write_text("model_final.pth")
    train(tiny_cfg(longer, **settings, SOLVER__MAX_ITER=2), **RESUME)
    assert state.exists()
    train(tiny_cfg(longer, **settings), **RESUME)
    assert_same(saved_weights(whole / "model_final.pth"), saved_weights(longer / "model_final.pth"))
    assert sorted(path.name for path in longer.glob("*.pth")) == ["model_0000003.pth", "model_final.pth"]


def test_log_says_that_nothing_is_resumed_and_that_no_evaluation_is_due(tmp_path, tiny_cfg):
    train(tiny_cfg(tmp_path, val=True, SOLVER__MAX_ITER=1, SOLVER__STEPS=[], TEST__EVAL_PERIOD=5), **RESUME)
    log = (tmp_path / "log.txt").read_text()
    assert f"{tmp_path} holds no checkpoint to resume from. Starting from iteration 0." in log
    assert "TEST.EVAL_PERIOD 5 is beyond SOLVER.MAX_ITER 1: this run is evaluated at its end only." in log


def test_new_run_does_not_overwrite_old_run(tmp_path, tiny_cfg):
    (tmp_path / "model_final.pth").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"model_final\.pth.*--resume"):
        train(tiny_cfg(tmp_path))
    assert (tmp_path / "model_final.pth").read_bytes() == b"precious"


def test_metrics_of_repeated_iterations_are_removed(tmp_path):
    from pvt_det.engine.results import trim_metrics

    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 19, "a": 1}\n{"iteration": 39, "a": 2}\n{"itera')
    trim_metrics(path, 39)
    assert path.read_text() == '{"iteration": 19, "a": 1}\n'


def test_signal_stops_evaluation_and_resumed_run_repeats_it(tmp_path, tiny_cfg, monkeypatch):
    from pvt_det.engine.trainer import PVTTrainer

    evaluated = []

    def interrupted_evaluation(cfg, model, before_image):
        evaluated.append(len(evaluated))
        if len(evaluated) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        before_image()
        return {"bbox": {"AP": float(len(evaluated))}}

    monkeypatch.setattr(PVTTrainer, "test", staticmethod(interrupted_evaluation))
    settings = {"val": True, "TEST__EVAL_PERIOD": 2}
    with pytest.raises(Interrupted, match=r"after iteration 2; .*model_0000001\.pth"):
        train(tiny_cfg(tmp_path, **settings))
    train(tiny_cfg(tmp_path, **settings), **RESUME)
    # The interrupted evaluation, its repetition and the final one.
    assert len(evaluated) == 3
    best = json.loads((tmp_path / "results.json").read_text())["checkpoints"]["best"]
    assert (best["selected_by"], best["metrics"], best["iteration"]) == ("bbox/AP", {"bbox": {"AP": 3.0}}, 4)
