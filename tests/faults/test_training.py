"""Runs that are stopped, diverge or fail in evaluation lose nothing and resume exactly."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

from pvt_det.checkpoint import CheckpointStore
from pvt_det.data import sets
from pvt_det.engine.step import TrainStep
from pvt_det.engine.trainer import PVTTrainer
from pvt_det.errors import DataError, NumericError
from pvt_det.utils import signals
from pvt_det.utils.signals import StopRequest
from pvt_det.weights.reader import read_file
from tests.drills.hosts import run_hosts
from tests.drills.network import can_make_hosts
from tests.drills.restarts import run_restarts
from tests.drills.resume import run_resume
from tests.engine.test_step import Regression, batches, build
from tests.tiny_runs import CONFIG, stop_in

THREE = {"SOLVER__MAX_ITER": 3, "SOLVER__STEPS": []}


@pytest.fixture
def evaluations(monkeypatch):
    """Values of bbox/AP that successive evaluations return, or exceptions that they raise."""
    values: list[float | Exception] = []

    def evaluate(cfg, model, before_image):
        value = values.pop(0)
        if isinstance(value, Exception):
            raise value
        return {"bbox": {"AP": value}}

    monkeypatch.setattr(PVTTrainer, "test", staticmethod(evaluate))
    return values


def test_F40_resume_keeps_the_best_metric(command, evaluations, monkeypatch, tmp_path):
    settings = {"val": True, "TEST__EVAL_PERIOD": 1} | THREE
    evaluations += [5.0, 1.0, 2.0, 2.0]
    with monkeypatch.context() as patch:
        stop_in(patch, 2)
        assert command(**settings).code == 75
    assert command("--resume", **settings).code == 0
    best = json.loads((tmp_path / "run/results.json").read_text())["checkpoints"]["best"]
    assert (best["metrics"], best["iteration"]) == ({"bbox": {"AP": 5.0}}, 1)
    assert read_file(tmp_path / "run/model_best.pth")["iteration"] == 0
    assert read_file(tmp_path / "run/model_final.pth")["iteration"] == 2


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("retinanet", 0),
        pytest.param("mask_rcnn", 2, marks=pytest.mark.slow),
    ],
)
def test_F41_resumed_run_equals_an_uninterrupted_one(tmp_path, repo_root, name, workers):
    """All state is bit-identical after five stops, with averaged weights and accumulated gradients."""
    config = str(repo_root / f"configs/{name}_pvt_tiny.yaml")
    outcome = run_resume(tmp_path, [config], seeds=[3], workers=[workers])
    assert outcome.tried == 1
    assert not outcome.failures, outcome


def test_F41_resume_refuses_a_different_run(command, tiny_set, tmp_path):
    assert command(**tiny_set.words(), **THREE).code == 0
    folder = str(tmp_path / "run")
    sgd = command("--resume", **tiny_set.words(), **THREE, SOLVER__OPTIMIZER="sgd")
    assert (sgd.code, "the optimizer is AdamW, expected SGD" in sgd.error) == (4, True), sgd
    fewer = command("--resume", **tiny_set.words(), **THREE | {"SOLVER__MAX_ITER": 2})
    assert (fewer.code, "3 iterations, but SOLVER.MAX_ITER is 2" in fewer.error) == (2, True), fewer
    tiny_set.content["categories"][1]["name"] = "mug"
    mugs = tiny_set.json_file.rename(tiny_set.folder / "mugs.json")
    other = command("--resume", **tiny_set.words() | {"DATASETS__TRAIN_JSON": mugs}, **THREE)
    assert (other.code, "classes bowl, cup, but the data has bowl, mug" in other.error) == (3, True), other
    assert all(folder in ending.error for ending in (sgd, fewer, other))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_F42_signal_stops_the_run_after_its_step_and_saves_everything(command, monkeypatch, tmp_path, number):
    with monkeypatch.context() as patch:
        stop_in(patch, 2, number)
        notices = []
        patch.setattr(signals, "show_notice", notices.append)
        ending = command(**THREE)
    assert ending.code == 75
    assert ending.error.startswith(f"stopped: by {number.name} after iteration 2; everything is saved in ")
    assert "Resume with: pvt-det train --resume --config-file" in ending.error
    acknowledged = ["Saving after this iteration; press Ctrl-C again to stop now."]
    assert notices == (acknowledged if number == signal.SIGINT else [])
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000001.pth"
    assert command("--resume", **THREE).code == 0


def test_F42_sigterm_before_the_first_step(command, monkeypatch, tmp_path):
    """During the check of the data there is nothing to save, and a scheduler may start the run again."""

    def slow_check(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("SIGTERM was ignored")

    monkeypatch.setattr(sets, "check_dataset", slow_check)
    before = signal.getsignal(signal.SIGTERM)
    ending = command(**THREE)
    assert ending.code == 75
    assert ending.error.startswith("stopped: by SIGTERM, before there was anything new to save. Resume with: ")
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list((tmp_path / "run").glob("*.pth"))


def test_F42_two_simultaneous_ctrl_c_count_as_one(monkeypatch):
    """Under torchrun, processes get the terminal's signal twice. One that follows later stops at once."""
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGINT"
        monkeypatch.setattr(signals.time, "monotonic", lambda: math.inf)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_F42_printing_to_a_closed_terminal_does_not_fail():
    terminal, stdout = os.openpty()
    before = os.dup(1)
    os.dup2(stdout, 1)
    try:
        with StopRequest() as stop:
            os.close(terminal)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(1, b"lost")
            os.kill(os.getpid(), signal.SIGHUP)
            assert os.write(1, b"lost") == 4
            assert stop.signal_name == "SIGHUP"
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(stdout)


def test_F42_nohup_survives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal_name is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_F42_sigterm_from_outside_saves_within_30_seconds(tiny_words, repo_root, tmp_path):
    words = ["--config-file", CONFIG, *tiny_words(tmp_path, SOLVER__MAX_ITER=600, SOLVER__STEPS=[])]
    command = [sys.executable, "tools/train_net.py", *words]
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=repo_root
    )
    for line in run.stdout:
        if "iteration 1/600" in line:
            break
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=30)
    assert run.returncode == 75
    store = CheckpointStore(tmp_path)
    saved = store.load(store.latest())["iteration"]
    assert error.startswith(f"stopped: by SIGTERM after iteration {saved + 1}; everything is saved in ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_F44_nonfinite_batch_is_skipped_and_counted(bad):
    step = build(Regression(), ema_decay=0.5, max_nonfinite=2)
    good, broken = batches(1)[0], (torch.full((3, 4), bad), torch.zeros(3, 1))
    step(iter([good]))
    before = copy.deepcopy(step.state_dict())
    for _ in range(2):
        step(iter([broken]))
    after = step.state_dict()
    assert (after["skipped"], after["skipped_in_row"]) == (2, 2)
    for part in ("model", "training_model"):
        torch.testing.assert_close(after[part], before[part], rtol=0, atol=0)
    step(iter([good]))
    assert step.state_dict()["skipped_in_row"] == 0
    for _ in range(2):
        step(iter([broken]))
    with pytest.raises(NumericError, match="3 iterations in a row"):
        step(iter([broken]))


def test_F44_diverging_run_saves_no_nonfinite_state(command, tmp_path):
    # The weights explode in the first step, and all later losses are nonfinite.
    diverging = {
        "SOLVER__OPTIMIZER": "sgd",
        "SOLVER__BASE_LR": 10.0,
        "SOLVER__WARMUP_ITERS": 0,
        "MODEL__PIXEL_STD": [1e-3] * 3,
    }
    limits = {"SOLVER__MAX_ITER": 20, "SOLVER__STEPS": [], "SOLVER__MAX_NONFINITE_STEPS": 2}
    ending = command(**diverging, **limits)
    assert ending.code == 5
    assert "SOLVER.BASE_LR" in ending.error
    assert not list((tmp_path / "run").glob("*.pth"))


def test_F44_a_lower_learning_rate_helps_the_resumed_run(command):
    """The messages suggest this fix. Detectron2 would continue with the checkpoint's learning rate."""
    steady = {"SOLVER__STEPS": [], "SOLVER__WARMUP_ITERS": 0}
    assert " lr 0.0001 " in command(SOLVER__MAX_ITER=1, **steady).output
    ending = command("--resume", SOLVER__MAX_ITER=2, SOLVER__BASE_LR=3e-7, **steady)
    assert ending.code == 0
    assert "Continuing with those of this config" in ending.output
    assert "iteration 2/2" in ending.output
    assert ending.output.rpartition("iteration 2/2")[2].split(" lr ")[1].startswith("3e-07 ")


def test_F44_gradient_whose_square_overflows_counts_as_nonfinite():
    """AdamW's second moment would become infinite, and the weight would never change again."""
    model = Regression()
    step = TrainStep(model, torch.optim.AdamW(model.parameters()), device=torch.device("cpu"))
    inputs, targets = batches(1)[0]
    report = step(iter([(inputs * 1e13, targets)]))
    assert math.isfinite(report.losses["loss_fit"])
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert step.skipped == 1
    assert not step.optimizer.state


def test_F45_unnoticed_nan_weights_are_not_saved_as_the_result(command, monkeypatch, tmp_path):
    """The last step sets a weight to NaN, which no later loss can reveal."""
    run = PVTTrainer.after_step

    def break_weight(self):
        if self.iter == 2:
            with torch.no_grad():
                self.model.head.cls_score.bias[0] = math.nan
        run(self)

    monkeypatch.setattr(PVTTrainer, "after_step", break_weight)
    ending = command(**THREE, SOLVER__CHECKPOINT_PERIOD=1)
    assert ending.code == 5
    assert "head.cls_score.bias contains NaN" in ending.error
    assert not (tmp_path / "run/model_final.pth").exists()
    assert CheckpointStore(tmp_path / "run").latest().name == "model_0000001.pth"


def test_F46_failed_evaluation_stops_the_run_with_everything_saved(command, evaluations, tmp_path):
    settings = {"val": True, "TEST__EVAL_PERIOD": 2, "SOLVER__MAX_ITER": 3, "SOLVER__STEPS": []}
    evaluations += [DataError("image 7.jpg is gone")]
    ending = command(**settings)
    assert (ending.code, ending.error) == (3, "error: image 7.jpg is gone\n")
    assert CheckpointStore(tmp_path / "run").latest().name == "model_0000001.pth"
    evaluations += [4.0, 6.0]
    assert command("--resume", **settings).code == 0


def test_F46_failed_evaluation_is_skipped_on_request(command, evaluations, tmp_path):
    evaluations += [DataError("image 7.jpg is gone"), 6.0]
    words = {"val": True, "TEST__EVAL_PERIOD": 2, "TEST__ON_ERROR": "continue"} | THREE
    assert command(**words).code == 0
    assert "Evaluation after iteration 2 failed (image 7.jpg is gone)" in (tmp_path / "run/log.txt").read_text()
    best = json.loads((tmp_path / "run/results.json").read_text())["checkpoints"]["best"]
    assert best["metrics"] == {"bbox": {"AP": 6.0}}


@pytest.mark.slow
def test_F49_killed_host_is_replaced_and_the_run_ends_as_an_undisturbed_one(tmp_path, repo_root, monkeypatch):
    if not can_make_hosts():
        pytest.skip("needs network namespaces")
    monkeypatch.chdir(repo_root)
    outcome = run_hosts(tmp_path, CONFIG, 1, number=2, is_brief=True)
    assert outcome.tried == 1
    assert not outcome.failures, outcome


@pytest.mark.slow
def test_F49_killed_rank_is_restarted_and_the_run_finishes(tmp_path, repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)
    outcome = run_restarts(tmp_path, CONFIG, 1, iterations=12)
    assert outcome.tried == 1
    assert not outcome.failures, outcome
