"""What all tracking services share: failures cost no run, metrics are sent once, and runs end with their status."""

from __future__ import annotations

import json
import logging

import pytest
from detectron2.utils.events import EventStorage

from pvt_det.engine.loggers import tracking
from pvt_det.engine.loggers.tracking import TrackingWriter, has_tracked_runs, tracked_runs
from pvt_det.errors import Interrupted


class Service(TrackingWriter):
    """A service that records its calls, and that can be down."""

    def __init__(self, cfg, folder, is_down=False):
        self.is_down, self.calls = is_down, []
        super().__init__("Service", cfg, folder)

    def _call(self, *call):
        if self.is_down:
            raise RuntimeError("no route to http://me:secret@host/api\nmore lines")
        self.calls.append(call)

    def start(self, run_id):
        self._call("start", run_id)
        return run_id or "run-1"

    def log_config(self, values):
        self._call("config", values)

    def log_metrics(self, values, iteration):
        self._call("metrics", iteration, values)

    def set_tags(self, tags):
        self._call("tags", tags)

    def log_file(self, path):
        self._call("file", path.name)

    def end(self, status):
        self._call("end", status)

    def named(self, kind):
        return [call[1:] for call in self.calls if call[0] == kind]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: `clock[0] = seconds`."""
    seconds = [1000.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: seconds[0])
    return seconds


def write(service, iteration, **values):
    with EventStorage(iteration) as storage:
        storage.put_scalars(smoothing_hint=False, **values)
        service.write()


def test_run_gets_the_whole_config_and_the_code_version(cfg, tmp_path):
    cfg.SOLVER.BETAS = (0.8, 0.9)
    service = Service(cfg, tmp_path)
    (values,) = service.named("config")[0]
    assert values["SOLVER.BETAS"] == [0.8, 0.9]
    assert values["LOGGERS"] == ["tensorboard"]
    assert len(values) > 200
    assert "SHA-256" in service.named("tags")[0][0]["code version"]


def test_each_metric_is_sent_once_and_the_last_evaluation_too(cfg, tmp_path):
    service = Service(cfg, tmp_path)
    with EventStorage(0) as storage:
        storage.put_scalars(total_loss=2.0)
        service.write()
        service.write()
        # The final evaluation belongs to an iteration that has been written.
        storage.put_scalar("bbox/AP", 40.0, smoothing_hint=False, cur_iter=0)
        service.write()
    assert service.named("metrics") == [(0, {"total_loss": 2.0}), (0, {"bbox/AP": 40.0})]


def test_resumed_run_continues_the_same_one(cfg, tmp_path):
    Service(cfg, tmp_path)
    assert json.loads((tmp_path / "logger_runs.json").read_text()) == {"Service": "run-1"}
    assert Service(cfg, tmp_path).named("start") == [("run-1",)]


def test_damaged_ids_start_a_new_run(cfg, tmp_path, caplog):
    (tmp_path / "logger_runs.json").write_text('{"Service": 3}')
    with caplog.at_level(logging.WARNING, "pvt_det"):
        assert Service(cfg, tmp_path).named("start") == [(None,)]
    assert "logger_runs.json is damaged" in caplog.text


def test_failing_service_is_reported_once_and_what_is_lost_is_counted(cfg, tmp_path, clock, caplog):
    service = Service(cfg, tmp_path)
    with caplog.at_level(logging.WARNING, "pvt_det"):
        service.is_down = True
        write(service, 0, a=1.0, b=2.0)
        clock[0] += 29
        service.is_down = False
        write(service, 20, a=1.0)  # still paused
        clock[0] += 2
        write(service, 40, a=3.0)
        service.finish("FAILED")
    assert service.named("metrics") == [(40, {"a": 3.0})]
    assert service.named("end") == [("FAILED",)]
    first, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("Service failed: no route to http://…@host/api. The run continues")
    assert last.startswith("Service has not received everything: lost 3 metric values.")


def test_pause_grows_with_each_failure(cfg, tmp_path, clock):
    service = Service(cfg, tmp_path, is_down=True)
    tried = []
    service._call = lambda *call: tried.append(clock[0]) or 1 / 0
    for second in range(1000, 1400, 10):
        clock[0] = float(second)
        write(service, second, a=1.0)
    # 30 seconds after the start failed, then 60, 120 and 240 seconds later.
    assert tried == [1030.0, 1090.0, 1210.0]


def test_service_that_is_down_at_the_start_is_started_later(cfg, tmp_path, clock):
    service = Service(cfg, tmp_path, is_down=True)
    service.is_down = False
    clock[0] += 31
    write(service, 40, a=3.0)
    assert [call[0] for call in service.calls] == ["start", "config", "tags", "metrics"]


def test_finished_run_sends_its_files_and_the_digests_of_its_checkpoints(cfg, tmp_path, monkeypatch):
    for name in ("report.html", "config.yaml", "results.json", "model_best.pth", "model_0000019.pth"):
        (tmp_path / name).touch()
    monkeypatch.setattr(tracking, "_checkpoint_tags", lambda folder: {"best.sha256": "abc"})
    service = Service(cfg, tmp_path)
    with tracked_runs():
        assert has_tracked_runs()
    assert [name for (name,) in service.named("file")] == [
        "report.html", "config.yaml", "results.json", "model_best.pth",
    ]  # fmt: skip
    assert service.named("tags")[-1] == ({"best.sha256": "abc"},)
    assert service.named("end") == [("FINISHED",)]
    assert not has_tracked_runs()


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted("x"), "KILLED"), (KeyboardInterrupt(), "KILLED"), (RuntimeError("x"), "FAILED")],
)
def test_stopped_run_ends_with_its_status_and_without_files(cfg, tmp_path, error, status):
    (tmp_path / "config.yaml").touch()
    service = Service(cfg, tmp_path)
    with pytest.raises(type(error)), tracked_runs():
        raise error
    assert service.named("end") == [(status,)]
    assert service.named("file") == []
