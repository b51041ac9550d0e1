"""Tests of `pvt-det benchmark`: trunks, configs and runs are measured, and options without effect are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from pvt_det import profiling
from pvt_det.cli import benchmark
from pvt_det.cli.start import start
from pvt_det.errors import ConfigError
from pvt_det.runtimes.openvino_folder import fastest_precision

SMALL = ["--sizes", "2x32x64", "--repeats", "1", "--threads", "1"]


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure memory in this process, because a new one takes seconds to import everything."""
    monkeypatch.setattr(profiling, "run_in_own_process", lambda function, *arguments: function(*arguments))


def call(*words):
    return start("benchmark", [str(word) for word in words], "pvt-det benchmark")


def test_latency_and_memory_of_a_trunk(tmp_path, capsys):
    file = tmp_path / "new/found.json"
    words = ["--models", "pvt_v2_b0", *SMALL, "--dtypes", "bf16", "--modes", "training"]
    assert call(*words, "--json", file) == 0
    found = json.loads(file.read_text())
    (row,) = found["rows"]
    assert [row[key] for key in ("model", "dtype", "weights")] == ["pvt_v2_b0", "bf16", "random"]
    assert 0 < row["min_s"] <= row["median_s"]
    assert row["images_per_s"] == pytest.approx(2 / row["median_s"])
    assert row["peak_mib"] > 0
    assert found["environment"]["threads"] == 1
    shown = capsys.readouterr().out
    assert "pvt_v2_b0" in shown
    assert "peak memory" in shown


@pytest.mark.usefixtures("in_this_process")
def test_runs_use_trained_weights_and_configs_random_ones(untrained_run, repo_root, tmp_path):
    config = repo_root / "configs/semantic_fpn_pvt_tiny.yaml"
    assert call("--models", untrained_run, config, *SMALL, "--json", tmp_path / "found.json") == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["model"], row["mode"], row["weights"]) for row in rows] == [
        (str(model), mode, weights)
        for model, weights in ((untrained_run, "model_final.pth"), (config, "random"))
        for mode in ("inference", "training")
    ]


@pytest.mark.usefixtures("in_this_process", "smallest_variant")
def test_exported_files_are_measured_in_inference(exported, tmp_path):
    formats = ["fp32", "bf16"] if fastest_precision() == "bf16" else ["fp32"]
    words = [exported / "mine_openvino", *SMALL, "--dtypes", *formats, "--device", "cpu"]
    assert call("--models", *words, "--json", tmp_path / "found.json") == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["mode"], row["dtype"]) for row in rows] == [("inference", each) for each in formats]
    for option in (["--modes", "training"], ["--plan"]):
        with pytest.raises(ConfigError, match=r"mine\.onnx is an exported file, whose inference only is measured"):
            call("--models", exported / "mine.onnx", *option)
    with pytest.raises(ConfigError, match=r"ONNX Runtime runs .* in fp32\."):
        call("--models", exported / "mine.onnx", "--dtypes", "bf16", "--device", "cpu")


@pytest.mark.usefixtures("in_this_process")
def test_out_of_memory_is_reported_in_the_row(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(profiling, "build_model", raise_out_of_memory)
    words = ["--models", "pvt_v2_b0", *SMALL, "--modes", "training", "--json", tmp_path / "found.json"]
    assert call(*words) == 0
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row[key] for key in ("median_s", "min_s", "images_per_s", "peak_mib")] == [None] * 4
    assert capsys.readouterr().out.count("out of memory") == 1


def raise_out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.usefixtures("in_this_process")
def test_plan_covers_runs_with_and_without_checkpointing(capsys, tmp_path):
    words = ["--models", "pvt_v2_b0", "--sizes", "1x32x32", "--plan", "--memory", "4", "--json", tmp_path / "plan.json"]
    words += ["--modes", "training"]
    assert call(*words) == 0
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert [(row["mode"], row["checkpointed"]) for row in rows] == [("training", False), ("training", True)]
    assert all(row["total_mib"] <= 4096 for row in rows)
    assert "Fits into 4.0 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --models"),
        (
            ["--models", "pvt_smal"],
            "Unknown model pvt_smal. Did you mean pvt_small. Expected a config file, .*pvt_v2_b5",
        ),
        (["--models", "configs/retinanet_pvt_tiny.yml"], "Did you mean retinanet_pvt_tiny.yaml"),
        (["--models", "configs"], "configs contains no config.yaml. Expected a run's output folder"),
        (["--models", "pvt_tiny", "--memory", "8"], "--memory has no effect without --plan"),
        (["--models", "pvt_tiny", "--plan", "--memory", "0"], "--memory 0.0: expected more than 0 GiB"),
        (["--models", "pvt_tiny", "--plan", "--repeats", "3"], "--repeats has no effect with --plan"),
        (["--models", "pvt_tiny", "--compile"], "unrecognized arguments: --compile"),
        (["--models", "pvt_tiny", "--device", "gpu"], "--device gpu: expected cpu, cuda"),
        (["--models", "pvt_tiny", "--repeats", "0"], "'0' is not an integer of 1 or more"),
        (["--models", "pvt_tiny", "--sizes", "800x1216"], "'800x1216' is not BATCHxHEIGHTxWIDTH"),
        (["--models", "pvt_tiny", "--suite", "trunk"], "unrecognized arguments: --suite trunk"),
        (["--models", "pvt_tiny", "--treads", "1"], "unrecognized arguments: --treads 1. Did you mean --threads?"),
    ],
)
def test_invalid_options_are_reported(words, message, repo_root, monkeypatch):
    monkeypatch.chdir(repo_root)
    with pytest.raises(ConfigError, match=message):
        call(*words)


def test_command_does_not_import_the_benchmarks_folder():
    code = f"import sys, {benchmark.__name__}; print([name for name in sys.modules if name.startswith('benchmarks')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
