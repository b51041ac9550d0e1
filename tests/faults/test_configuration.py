"""A mistake in the configuration ends the run with exit code 2 before training starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pvt_det.utils.lock import LOCK_NAME
from tests.tiny_runs import CONFIG


@pytest.fixture
def refused_config(refused, tmp_path):
    """Check that a config file with the given content fails with exit code 2."""

    def expect(content: str, *parts: str) -> None:
        path = tmp_path / "config.yaml"
        path.write_text(content)
        refused(2, str(path), *parts, options=("--config-file", path))

    return expect


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("SOLVER: {BASE_LRR: 1.0}", ["unknown key SOLVER.BASE_LRR", "Did you mean SOLVER.BASE_LR"]),
        ("SOLVER: {MAX_ITER: many}", ["SOLVER.MAX_ITER = 'many'", "an integer"]),
        ("SOLVER: {MAX_ITER: null}", ["SOLVER.MAX_ITER = null", "an integer"]),
        ("SOLVER: {MOMENTUM: -3}", ["SOLVER.MOMENTUM = -3.0", "a number, 0 or more and less than 1"]),
        ('MODEL: {WEIGHTS: "a\\ud800"}', ["MODEL.WEIGHTS", "Unicode"]),
        ('OUTPUT_DIR: "a\\0"', ["OUTPUT_DIR", "null bytes"]),
        ("MODEL:\n  MASK_ON: false\nSEED: 1\nMODEL:\n  MASK_ON: true", ["line 4", "MODEL appears twice"]),
    ],
    ids=["unknown key", "wrong type", "null", "negative", "no Unicode", "zero byte", "duplicate section"],
)
def test_F08_wrong_key_or_value(refused_config, content, parts):
    refused_config(content + "\n", *parts)


def test_F08_unknown_device(refused):
    refused(2, "MODEL.DEVICE = 'tpu'", "cpu, cuda", MODEL__DEVICE="tpu")


@pytest.mark.parametrize("schedule", ["WarmupCosineLR", "WarmupPolyLR", "WarmupMultiStepLR"])
def test_F08_warm_up_as_long_as_the_run(refused, command, schedule):
    """The warm-up would end at the end of the schedule, so the learning rate would always be near 0."""
    words = {"SOLVER__LR_SCHEDULER_NAME": schedule, "SOLVER__WARMUP_ITERS": 1, "SOLVER__MAX_ITER": 1}
    refused(2, "SOLVER.WARMUP_ITERS = 1", "less than SOLVER.MAX_ITER, 1", SOLVER__STEPS=[1], **words)
    if schedule == "WarmupMultiStepLR":  # without steps, it reaches the full learning rate
        assert command(SOLVER__STEPS=[], **words).code == 0


def test_F09_config_that_is_not_a_regular_file(refused, tmp_path):
    """Reading a pipe would block."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "base.yaml").write_text("_BASE_: pipe.yaml\n")
    for name, parts in (
        ("pipe.yaml", ["pipe.yaml", "is not a regular file"]),
        ("folder.yaml", ["folder.yaml", "is a folder"]),
        ("base.yaml", ["pipe.yaml (named by _BASE_ in", "is not a regular file"]),
        ("x" * 300 + ".yaml", ["File name too long"]),
    ):
        refused(2, *parts, options=("--config-file", tmp_path / name))


@pytest.mark.parametrize("content", ["", "- SEED\n- 1\n"], ids=["empty", "list"])
def test_F09_yaml_without_keys(refused_config, content):
    refused_config(content, "found nothing" if not content else "found a list")


def test_F09_circular_base(refused, tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml\n")
    cycle = " → ".join(str(tmp_path / f"{name}.yaml") for name in "abca")
    refused(2, cycle, options=("--config-file", tmp_path / "a.yaml"))


def test_F24_class_count_that_differs_from_the_data(refused, tiny_set):
    parts = ("MODEL.RETINANET.NUM_CLASSES is 5", "bowl, cup", "Set it to 2")
    refused(2, *parts, MODEL__RETINANET__NUM_CLASSES=5, **tiny_set.words())
    evaluation = {"MODEL__RETINANET__NUM_CLASSES": 5, "MODEL__WEIGHTS": "x.pth", **tiny_set.words("VAL")}
    refused(2, *parts, options=("--eval-only",), **evaluation)


def test_F47_two_runs_in_one_folder(refused, tmp_path):
    """Another process holds the lock, which is released when that process ends in any way."""
    folder = tmp_path / "run"
    folder.mkdir()
    hold = f"""
import fcntl, os, sys
file = os.open({str(folder / LOCK_NAME)!r}, os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
os.pwrite(file, str(os.getpid()).encode(), 0)
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        refused(2, f"process {holder.pid}", str(folder), "--output")
        assert not (folder / "log.txt").exists()
        holder.kill()
    refused(2, "SOLVER.BASE_LRR", options=("SOLVER.BASE_LRR", "1"))


@pytest.mark.slow
def test_F48_torchrun_joins_one_group_and_evaluates_every_image_once(tiny_words, tmp_path, repo_root):
    words = ["--config-file", CONFIG, *tiny_words(tmp_path, val=True, SOLVER__MAX_ITER=2, SOLVER__STEPS=[])]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    done = subprocess.run(
        [*torchrun, "tools/train_net.py", *words],
        env=environment,
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("iteration 2/2") == 1
    assert sorted(path.name for path in tmp_path.glob("log.txt*")) == ["log.txt", "log.txt.rank1"]
    # A missing or duplicate image would be an error.
    assert json.loads((tmp_path / "results.json").read_text())["checkpoints"]["final"]["metrics"]["bbox"].keys() >= {
        "AP",
        "AP50",
    }
