"""Trainings with loggers, from the command line."""

from __future__ import annotations

import pytest

from pvt_det.config import load_config
from pvt_det.errors import ConfigError, Interrupted
from tests.command_line import run_command
from tests.tiny_runs import stop_in

CONFIG = "retinanet_pvt_tiny"
FAILING = """
from pvt_det.engine.loggers.tracking import TrackingWriter
class Broken(TrackingWriter):
    def _fail(self, *_): raise RuntimeError("no answer")
    start = log_config = log_metrics = set_tags = log_file = end = _fail
def build(cfg, folder): return Broken("Broken", cfg, folder)
"""


def test_training_survives_a_service_that_never_answers(offer, tiny_words, tmp_path, capsys):
    offer("acme_broken", FAILING, broken="acme_broken:build")
    words = tiny_words(tmp_path / "run", SOLVER__MAX_ITER=2, SOLVER__STEPS=[])
    assert run_command("train", [CONFIG, "--logger", "broken", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("Broken failed: no answer.") == 1
    assert "Broken has not received everything: lost" in shown
    assert load_config(tmp_path / "run/config.yaml").LOGGERS == ["broken"]
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics.json", "report.html", "README.md"} <= files
    assert not any(name.startswith("events.out") for name in files)


def test_unknown_logger_is_refused_before_the_data_is_read(tiny_words, tmp_path):
    words = tiny_words(tmp_path / "run", DATASETS__TRAIN_JSON=__file__)
    with pytest.raises(ConfigError, match="unknown logger 'comet'"):
        run_command("train", [CONFIG, "--logger", "comet", *words])


@pytest.mark.slow
def test_mlflow_gets_an_interrupted_and_resumed_run(tiny_words, tmp_path, monkeypatch):
    for package in ("sqlalchemy", "alembic"):
        pytest.importorskip(package, reason="needs the extra mlflow")
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cells")
    words = [CONFIG, "--logger", "tensorboard", "mlflow", *tiny_words(tmp_path / "run", val=True, SOLVER__MAX_ITER=4)]
    with monkeypatch.context() as patch:
        stop_in(patch, 2)
        with pytest.raises(Interrupted):
            run_command("train", words)
    client = mlflow.MlflowClient()
    experiment = [client.get_experiment_by_name("cells").experiment_id]
    (killed,) = client.search_runs(experiment)
    assert killed.info.status == "KILLED"
    assert run_command("train", [*words, "--resume"]) == 0
    (run,) = client.search_runs(experiment)
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert {metric.step for metric in client.get_metric_history(run.info.run_id, "total_loss")} == {1, 3}
    assert "bbox/AP" in run.data.metrics
    assert len(run.data.tags["final.sha256"]) == 64
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {
        "README.md", "config.yaml", "model_best.pth", "model_final.pth", "report.html", "results.json",
    }  # fmt: skip
