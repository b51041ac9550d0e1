"""`tools/train_net.py` trains and evaluates, also with custom hooks and evaluators."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from detectron2.engine import HookBase

from pvt_det.utils.cli import run_cli
from tests.tiny_runs import CONFIG
from tools import train_net


@pytest.fixture
def script(monkeypatch, repo_root):
    """Run the script in this process, and return its exit code."""
    monkeypatch.chdir(repo_root)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", CONFIG, *words])
        return run_cli(train_net.run)

    return run


def test_script_trains_and_evaluates(script, repo_root, tiny_words, tmp_path, capsys):
    words = tiny_words(tmp_path / "run", val=True, SOLVER__MAX_ITER=1, SOLVER__STEPS=[])
    command = [sys.executable, "tools/train_net.py", "--config-file", CONFIG, *words]
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    trained = json.loads((tmp_path / "run/results.json").read_text())
    assert trained["config_file"] == CONFIG
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "again")]
    assert (script("--eval-only", *words, *weights), capsys.readouterr().err) == (0, "")
    evaluated = json.loads((tmp_path / "again/evaluation.json").read_text())
    found, final = evaluated["checkpoints"]["evaluated"], trained["checkpoints"]["final"]
    assert (found["metrics"], found["iteration"], found["sha256"]) == (final["metrics"], 1, final["sha256"])
    assert evaluated["config_file"] == CONFIG


def test_error_is_one_line(script, tiny_words, tmp_path, capsys):
    assert script(*tiny_words(tmp_path / "run"), "SOLVER.BASE_LRR", "1") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_custom_hooks_and_evaluators(script, monkeypatch, tiny_words, tmp_path):
    seen = []

    class Hook(HookBase):
        def after_step(self):
            seen.append(self.trainer.iter)

    class Evaluator:
        def reset(self):
            seen.append("reset")

        def process(self, inputs, outputs):
            seen.append(len(inputs))

        def evaluate(self):
            return {"bbox": {"AP": 12.5}}

    class Trainer(train_net.Trainer):
        def build_hooks(self):
            return [*super().build_hooks(), Hook()]

        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder):
            return Evaluator()

    monkeypatch.setattr(train_net, "Trainer", Trainer)
    words = tiny_words(tmp_path, val=True, SOLVER__MAX_ITER=2, SOLVER__STEPS=[])
    assert script(*words) == 0
    assert seen[:3] == [0, 1, "reset"]
    final = json.loads((tmp_path / "results.json").read_text())["checkpoints"]["final"]
    assert final["metrics"] == {"bbox": {"AP": 12.5}}


def test_script_is_at_most_70_lines(repo_root):
    assert len((repo_root / "tools/train_net.py").read_text().splitlines()) <= 70
