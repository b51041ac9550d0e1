"""`pvt_det.export` returns the report that `pvt-det export` prints."""

from __future__ import annotations

import logging

import pytest

import pvt_det
from pvt_det.errors import ConfigError
from tests.command_line import run_command


@pytest.mark.slow
def test_report_of_an_exported_run(untrained_run, tmp_path, capsys):
    level = logging.getLogger("torch.onnx").level
    report = pvt_det.export(untrained_run, tmp_path / "mine.pt2")
    assert capsys.readouterr().out == ""
    assert report.path == tmp_path / "mine.pt2"
    assert report.path.stat().st_size > 1e6
    assert report.name == "RetinaNet pvt_v2_b0"
    assert report.outputs == ("boxes", "scores", "labels", "images")
    assert report.parity.detections > 0
    assert logging.getLogger("torch.onnx").level == level


def test_errors_name_the_arguments(untrained_run, tmp_path):
    with pytest.raises(ConfigError, match=r"^`output` .*mine\.txt: expected a name that ends in"):
        pvt_det.export(untrained_run, tmp_path / "mine.txt")
    with pytest.raises(ConfigError, match=r"^`output` .*mine\.onnx and `format` torch contradict each other"):
        pvt_det.export(untrained_run, tmp_path / "mine.onnx", format="torch")
    with pytest.raises(ConfigError, match=r"--output .*mine and --format onnx contradict each other.* ends in \.onnx"):
        run_command("export", [untrained_run, "--output", tmp_path / "mine", "--format", "onnx"])
