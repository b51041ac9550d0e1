"""Tests of the classification script as users start it: exit codes, resuming after a kill, two processes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pvt_det.classification.config import load_train_config
from pvt_det.cli import compare
from pvt_det.cli.start import start
from pvt_det.utils.cli import run_cli
from tests.data.imagenet.fakes import class_folders
from tests.ranks import Ranks
from tools import train_cls as script

_TINY = (
    *("--model", "pvt_v2_b0", "--img-size", "32", "--epochs", "2", "--batch-size", "4", "--warmup-epochs", "0.5"),
    *("--lr", "1e-3", "--lr-batch", "0", "--log-every", "1", "--device", "cpu", "--amp", "none"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("cls") / "set", train=8, val=4)


def _command(repo_root: Path, *words: str) -> list[str]:
    return [sys.executable, str(repo_root / "tools/train_cls.py"), *words]


def _environment(repo_root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def _losses(output: Path) -> dict[int, float]:
    path = output / "metrics.json"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    # Skip a last line that is still being written.
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["update"]: row["loss"] for row in rows if "loss" in row}


def test_help_lists_every_option_with_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("--label-smoothing", "--no-compile", "torchrun", "exit codes"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model", "pvt_smal"], 2, "Did you mean pvt_small"),
        (["--modle", "pvt_small"], 2, "Did you mean --model"),
        (["--model", "pvt_small"], 2, "--data DIR"),
        (["--model", "pvt_small", "--data", "nowhere"], 3, "nowhere: folder does not exist"),
        (["--model", "pvt_small", "--data", "{data}", "--eval-only", "--weights", "none.pth"], 4, "none.pth"),
    ],
)
def test_errors_are_one_line_with_a_code(data, tmp_path, capsys, words, code, message):
    words = [word.format(data=data) for word in words] + ["--output", str(tmp_path), "--device", "cpu"]
    assert run_cli(lambda: script.main(words)) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_train_evaluate_and_stop(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pvt_det.utils.progress._LEAST_SECONDS", 0.0)
    words = [*_TINY, "--data", str(data), "--output", str(tmp_path), "--workers", "0", "--epochs", "1", "--resume"]
    assert script.main([*words, "--log-every", "4"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"iteration (\d)/6  eta", printed) == ["1", "4", "6"]
    assert "evaluating 1/1  eta 0:00:00" in printed
    assert "model_best.safetensors" in printed
    assert f"{tmp_path} holds no checkpoint to resume from. Starting from epoch 0." in printed
    # Only the last checkpoint has the training state.
    assert {path.name for path in tmp_path.glob("model_*")} == {
        "model_last.pth",
        "model_best.safetensors",
        "model_final.safetensors",
    }
    best = str(tmp_path / "model_best.safetensors")
    arguments = ["--model", "pvt_v2_b0", "--img-size", "32", "--device", "cpu", "--amp", "none", "--workers", "0"]
    own = ["--data", str(data), "--output", str(tmp_path)]
    # The command is equivalent to the script.
    assert start("train-cls", [*arguments, *own, "--eval-only", "--weights", best], "pvt-det train-cls") == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    top1 = max(row["top1"] for row in rows if "top1" in row)
    assert f"top-1 {top1:.3f} %" in capsys.readouterr().out
    folders = [str(tmp_path), str(tmp_path / "evaluation/set_val")]
    assert compare.run(compare.build_parser().parse_args([*folders, "--format", "csv"])) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first["top-1"] == second["top-1"] == f"{top1:.2f}"
    assert (first["data"], first["top-1 published"], first["top-1 vs. published"]) == ("set_val", "-", "-")
    assert first["parameters (M)"] == "3.4"
    # The folder can be moved.
    for name in ("options.yaml", "results.json", "evaluation/set_val/evaluation.json"):
        assert str(tmp_path) not in (tmp_path / name).read_text().replace(str(data), "")
    assert load_train_config(tmp_path / "options.yaml").output == str(tmp_path)


@pytest.mark.slow
def test_resume_after_a_kill_in_mid_epoch_is_bit_exact(repo_root, data, tmp_path):
    """An epoch has six updates. SIGTERM is sent in the second epoch, SIGKILL in the third."""

    def words(name: str) -> list[str]:
        own = ("--data", str(data), "--output", str(tmp_path / name), "--workers", "1", "--save-minutes", "0")
        return [*_TINY, *own, "--epochs", "3"]

    for number, kind in ((7, signal.SIGTERM), (13, signal.SIGKILL)):
        command = _command(repo_root, *words("killed"), "--resume")
        run = subprocess.Popen(command, env=_environment(repo_root), stderr=subprocess.PIPE, text=True)
        while max(_losses(tmp_path / "killed"), default=0) < number:
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(kind)
        error = run.communicate(timeout=120)[1]
        done = torch.load(tmp_path / "killed/model_last.pth", weights_only=True)["iteration"]
        # SIGKILL can arrive between an update's log line and its checkpoint.
        assert number - 1 <= done < number + 5
        if kind == signal.SIGTERM:
            assert run.returncode == 75
            # It was started with --resume.
            assert error.splitlines()[-1].count("--resume") == 1
    script.main([*words("killed"), "--resume"])
    script.main(words("whole"))
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")
    assert sorted(_losses(tmp_path / "killed")) == list(range(1, 19))
    ends = [torch.load(tmp_path / name / "model_last.pth", weights_only=True)["model"] for name in ("killed", "whole")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[1])


def test_two_processes_train_like_one(data, tmp_path):
    """Without per-process randomness, two gloo processes take the same steps as one process with all images."""
    unmixed = ("--mixup", "0", "--cutmix", "0", "--erase-prob", "0", "--drop-path-rate", "0")
    words = [*_TINY, *unmixed, "--data", str(data), "--workers", "0", "--epochs", "1"]
    two = [*words, "--output", str(tmp_path / "two")]
    assert [each.code for each in Ranks(tmp_path / "ranks", "train-cls", [two, two]).wait()] == [0, 0]
    script.main([*words, "--output", str(tmp_path / "one")])
    assert len(_losses(tmp_path / "one")) == 6
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=1e-3)
    rows = [json.loads((tmp_path / name / "metrics.json").read_text().splitlines()[-1]) for name in ("one", "two")]
    assert rows[1]["val_loss"] == pytest.approx(rows[0]["val_loss"], rel=1e-3)
    assert "top1" in rows[1]
