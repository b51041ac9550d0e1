"""MLflow receives a run: against its own SQLite store."""

from __future__ import annotations

import logging

import pytest
from detectron2.utils.events import EventStorage

for package in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(package, reason="needs the extra mlflow")

from mlflow import MlflowClient  # noqa: E402

from pvt_det.engine.loggers.mlflow import EXPERIMENT, build_writer  # noqa: E402


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A client of an empty store, which the environment names. MLflow takes seconds to create one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = MlflowClient()
    # Files would otherwise go to a folder in the current one.
    client.create_experiment(EXPERIMENT, artifact_location=str(tmp_path / "files"))
    return client


@pytest.fixture
def folder(tmp_path):
    """A run folder."""
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def write(writer, iteration, **values):
    with EventStorage(iteration) as storage:
        storage.put_scalars(smoothing_hint=False, **values)
        writer.write()


def runs(client):
    return client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])


@pytest.mark.slow
def test_run_its_continuation_and_its_successor(client, cfg, folder, caplog):
    cfg.DATASETS.CLASS_NAMES = [f"class {number}" for number in range(1000)]
    with caplog.at_level(logging.INFO, "pvt_det"):
        writer = build_writer(cfg, folder)
        write(writer, 0, total_loss=2.5, **{"bbox/AP-a(b) & c": 7.0, "bbox/AP-x//y": 8.0})
        writer.finish("KILLED")
        (first,) = runs(client)
        assert (first.info.run_name, first.info.status) == ("mine", "KILLED")

        cfg.SOLVER.MAX_ITER += 10
        writer = build_writer(cfg, folder)
        assert runs(client)[0].info.status == "RUNNING"
        write(writer, 20, total_loss=1.5)
        (folder / "config.yaml").write_text("SEED: 3")
        (folder / "model_best.pth").write_bytes(b"weights")
        writer.finish("FINISHED")

    (run,) = runs(client)
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    parameters, tags = run.data.params, run.data.tags
    assert (parameters["SOLVER.OPTIMIZER"], parameters["SOLVER.BETAS"]) == ("adamw", "[0.9, 0.999]")
    assert len(parameters["DATASETS.CLASS_NAMES"]) == 6000
    assert int(tags["changed.SOLVER.MAX_ITER"]) == int(parameters["SOLVER.MAX_ITER"]) + 10
    assert "SHA-256" in tags["code version"]
    losses = client.get_metric_history(run.info.run_id, "total_loss")
    assert [(each.step, each.value) for each in losses] == [(0, 2.5), (20, 1.5)]
    assert (run.data.metrics["bbox/AP-a_28_b_29_ _26_ c"], run.data.metrics["bbox_2f_AP-x_2f__2f_y"]) == (7.0, 8.0)
    files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
    assert files == ["config.yaml", "model_best.pth"]
    assert "MLflow: cut to 6000 characters: DATASETS.CLASS_NAMES." in caplog.text
    assert "failed" not in caplog.text

    client.delete_run(run.info.run_id)
    (folder / "logger_runs.json").write_text('{"MLflow": "0123456789abcdef0123456789abcdef"}')
    with caplog.at_level(logging.WARNING, "pvt_det"):
        build_writer(cfg, folder).finish("FAILED")
    assert "no longer has the run 0123456789abcdef0123456789abcdef" in caplog.text
    assert [run.info.status for run in runs(client)] == ["FAILED"]


def test_server_that_is_down_ends_nothing(cfg, folder, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with caplog.at_level(logging.DEBUG, "pvt_det"):
        writer = build_writer(cfg, folder)
        write(writer, 0, total_loss=2.5)
        writer.finish("FAILED")
    first, trace, last = [record.getMessage() for record in caplog.records if record.name.startswith("pvt_det")]
    assert first.startswith("MLflow failed: ")
    assert "Traceback" in trace
    assert last.startswith("MLflow has not received everything: lost 1 metric value, 1 status.")
    assert "secret" not in caplog.text
