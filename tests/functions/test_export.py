"""`pvt_det.export` names its arguments in errors. tests/docs/test_python_api.py tests the report that it returns."""

from __future__ import annotations

import pytest

import pvt_det
from pvt_det.errors import ConfigError
from tests.command_line import run_command


def test_errors_name_the_arguments(untrained_run, tmp_path):
    with pytest.raises(ConfigError, match=r"^`output` .*mine\.txt: expected a name that ends in"):
        pvt_det.export(untrained_run, tmp_path / "mine.txt")
    with pytest.raises(ConfigError, match=r"^`output` .*mine\.onnx and `format` torch contradict each other"):
        pvt_det.export(untrained_run, tmp_path / "mine.onnx", format="torch")
    with pytest.raises(ConfigError, match=r"--output .*mine and --format onnx contradict each other.* ends in \.onnx"):
        run_command("export", [untrained_run, "--output", tmp_path / "mine", "--format", "onnx"])
