"""Tests of `pvt-det train`: options, exit codes, one-line errors, signals, and multiple processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pvt_det import api
from pvt_det.config import load_config
from pvt_det.utils.cli import run_cli
from pvt_det.weights.reader import read_file
from tests.command_line import run_command
from tests.ranks import Ranks
from tests.scripts import dataset_script

write_shapes = dataset_script("make_shapes").write_shapes

ROOT = Path(__file__).parents[2]
TINY = (
    "MODEL.WEIGHTS '' MODEL.DEVICE cpu MODEL.PVT.VARIANT pvt_v2_b0 MODEL.PVT.DROP_PATH_RATE 0.0 "
    "MODEL.FPN.OUT_CHANNELS 32 MODEL.RETINANET.NUM_CONVS 1 INPUT.MIN_SIZE_TRAIN [64] INPUT.MIN_SIZE_TEST 64 "
    "DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER 3 SOLVER.STEPS [] SOLVER.WARMUP_ITERS 0 SEED 3"
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=3, image_size=64)


@pytest.fixture
def words(shapes, tmp_path):
    """Builds the command line of a tiny run into `tmp_path / name`."""

    def build(*options: object, name: str = "run", overrides: str = "", val: bool = False) -> list[str]:
        data = ["--train-json", shapes / "annotations/instances_train.json", "--train-images", shapes / "train"]
        if val:
            data += ["--val-json", shapes / "annotations/instances_val.json", "--val-images", shapes / "val"]
        config = ["--config-file", ROOT / "configs/retinanet_pvt_tiny.yaml", "--output", tmp_path / name]
        settings = shlex.split(f"{TINY} {overrides}")
        return [str(word) for word in [*config, *data, *options, *settings]]

    return build


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def start(words, launcher=()):
    command = [sys.executable, *launcher, str(ROOT / "tools/train_net.py"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def run(words):
    """Run `pvt-det train WORDS`; returns the exit code."""
    return run_cli(lambda: run_command("train", words))


def weights(folder):
    return read_file(folder / "model_final.pth")["model"]


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["SOLVER.BASE_LRR", "1"], 2, "SOLVER.BASE_LR"),
        (["--evaluater", "hotcoco"], 2, "Did you mean --evaluator?"),
        (["--evaluator", "hotcocoa"], 2, "hotcoco"),
        (["SOLVER.MAX_ITER"], 2, "SOLVER.MAX_ITER has no value. Expected KEY VALUE or KEY=VALUE"),
        (["--batch-size", "8"], 2, "--batch-size sets SOLVER.IMS_PER_BATCH to 8, but SOLVER.IMS_PER_BATCH 4 is given"),
        (["--device", "tpu"], 2, "MODEL.DEVICE"),
        (["--image-size", "96"], 2, "--image-size sets INPUT.MIN_SIZE_TRAIN to (96,), but INPUT.MIN_SIZE_TRAIN [64]"),
        (["--epochs", "2"], 2, "SOLVER.MAX_ITER 3 would have no effect, because SOLVER.EPOCHS 2"),
        (["--epochs", "2", "SOLVER.WARMUP_ITERS", "9"], 2, "SOLVER.MAX_ITER 3 would have no effect, because SOLVER.EP"),
        (["--lr", "fast"], 2, "SOLVER.BASE_LR = 'fast': expected a number"),
        (["configs/x.yaml"], 2, "two configs are given: --config-file "),
        (["SOLVER.IMS_PER_BATCH", "-1"], 2, "SOLVER.IMS_PER_BATCH"),
        (["--machine-rank", "3"], 2, "--machine-rank 3"),
        (["--num-gpus", "99", "MODEL.DEVICE", "cuda"], 2, "--num-gpus 99"),
        (["MODEL.WEIGHTS", "nowhere.pth"], 4, "nowhere.pth"),
        (["--train-json", "nowhere.json"], 3, "nowhere.json"),
        (["--eval-only"], 3, "coco_2017_val"),
        (["--eval-only", "DATASETS.TEST", "[]"], 2, "--val-json"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(words, capsys, extra, code, message):
    assert run([*words(), *extra]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert "Traceback" not in error


def test_options_set_config_keys(monkeypatch, tmp_path):
    seen = {}

    def launch(job, cfg, args):
        seen.update(cfg=cfg, job=job, args=args)

    monkeypatch.setattr("pvt_det.engine.defaults.launch_from_args", launch)
    config = ["--config-file", "configs/mask_rcnn_pvt_tiny.yaml", "--output", "out"]
    data = ["--val-json", "v.json", "--val-images", "v", "--check-data", "full", "--evaluator", "pycocotools"]
    partial = ["--allow-partial", "head.*", "--allow-partial", "*.bias"]
    argv = [
        *config,
        *data,
        *partial,
        "--strict",
        "--resume",
        "--num-gpus",
        "2",
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.BASE_LR",
        "0.5",
    ]
    monkeypatch.chdir(ROOT)
    assert run(argv) == 0
    cfg, options = seen["cfg"], seen["job"].keywords
    assert (cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES, cfg.DATASETS.CHECK) == ("v.json", "v", "full")
    assert cfg.DATASETS.ON_ERROR == "strict"
    assert (cfg.TEST.EVALUATOR, cfg.SOLVER.BASE_LR, cfg.OUTPUT_DIR) == ("pycocotools", 0.5, "out")
    assert (seen["job"].func, options["resume"], options["allow_partial"]) == (api.train, True, ("head.*", "*.bias"))
    assert options["resume_command"].startswith("pvt-det train --config-file configs/mask_rcnn_pvt_tiny.yaml")
    assert options["resume_command"].count("--resume") == 1
    assert (seen["args"].num_gpus, cfg.MODEL.DEVICE) == (2, "cpu")


def parsed(monkeypatch, *words):
    """Return the config and the arguments of a command without running it."""
    seen = {}
    monkeypatch.setattr(
        "pvt_det.engine.defaults.launch_from_args", lambda job, cfg, args: seen.update(cfg=cfg, job=job, args=args)
    )
    monkeypatch.chdir(ROOT)
    assert run(words) == 0
    return seen["cfg"], seen["job"].keywords["note"], seen["args"]


def test_familiar_options(monkeypatch):
    options = ["--epochs", 12, "--batch-size", 8, "--lr", "1e-3", "--device", "cpu", "--seed", 7, "--image-size", 640]
    words = ["configs/retinanet_pvt_tiny.yaml", *options, "SOLVER.EMA.ENABLED=True", "MODEL.WEIGHTS", ""]
    cfg, note, args = parsed(monkeypatch, *map(str, words))
    assert args.config_file == "configs/retinanet_pvt_tiny.yaml"
    assert (cfg.SOLVER.EPOCHS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (12, 8, 0.001)
    assert (cfg.MODEL.DEVICE, cfg.SEED, cfg.SOLVER.EMA.ENABLED, cfg.MODEL.WEIGHTS) == ("cpu", 7, True, "")
    sizes = (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    assert sizes == ((640,), 640, 640, 640)
    assert note.startswith("--epochs 12 sets SOLVER.EPOCHS; --batch-size 8 sets SOLVER.IMS_PER_BATCH; --lr 1e-3 sets")
    assert note.endswith("INPUT.MIN_SIZE_TEST 640, INPUT.MAX_SIZE_TEST 640")


def test_batch_size_alone_says_that_the_learning_rate_stays(monkeypatch):
    _, note, _ = parsed(monkeypatch, "configs/retinanet_pvt_tiny.yaml", "--batch-size", "8")
    assert note == "--batch-size 8 sets SOLVER.IMS_PER_BATCH; SOLVER.BASE_LR stays 0.0001"


def test_option_and_key_may_agree(monkeypatch):
    cfg, _, _ = parsed(monkeypatch, "configs/retinanet_pvt_tiny.yaml", "--lr", "1e-3", "SOLVER.BASE_LR", "0.001")
    assert cfg.SOLVER.BASE_LR == 0.001


def test_image_size_must_be_valid(capsys):
    assert run([str(ROOT / "configs/retinanet_pvt_tiny.yaml"), "--image-size", "0"]) == 2
    assert "INPUT.MIN_SIZE_TRAIN = " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_falls_back_to_the_cpu_without_a_gpu(words, tmp_path, capsys):
    assert run([*words(overrides="SOLVER.MAX_ITER 1"), "MODEL.DEVICE", "cuda"]) == 0
    assert "Running on the CPU" in capsys.readouterr().out
    assert load_config(tmp_path / "run/config.yaml").MODEL.DEVICE == "cpu"


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        run(["--help"])
    assert stop.value.code == 0
    assert "--train-json train.json" in capsys.readouterr().out


def test_train_and_evaluate_from_json_files(words, tmp_path):
    assert run(words(val=True, overrides="MODEL.RETINANET.SCORE_THRESH_TEST 0.0")) == 0
    metrics = json.loads((tmp_path / "run/results.json").read_text())["checkpoints"]["final"]["metrics"]
    assert metrics["bbox"].keys() >= {"AP", "AP50", "AP-circle", "AP-star"}
    assert load_config(tmp_path / "run/config.yaml").MODEL.RETINANET.NUM_CLASSES == 4
    final = ["MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth")]
    config = ["--config-file", str(tmp_path / "run/config.yaml")]
    evaluate = ["--eval-only", "--evaluator", "pycocotools", "--output", str(tmp_path / "again")]
    assert run([*config, *evaluate, *final]) == 0
    again = json.loads((tmp_path / "again/evaluation.json").read_text())["checkpoints"]["evaluated"]["metrics"]
    assert again["bbox"] == pytest.approx(metrics["bbox"], abs=1e-9)
    # With the score threshold 0.0 an untrained model has a nonzero recall to compare.
    assert metrics["bbox"]["AR100"] > 0


@pytest.mark.parametrize("normalizer", ["ema", "batch"])
def test_two_processes_train_like_one_with_the_whole_batch(words, tmp_path, normalizer):
    # SGD, because Adam amplifies rounding errors of gradients near zero.
    settings = f"SOLVER.OPTIMIZER sgd SOLVER.BASE_LR 0.01 MODEL.RETINANET.LOSS_NORMALIZER {normalizer}"
    two = words(name="two", overrides=settings)
    assert [(each.code, each.error) for each in Ranks(tmp_path / "ranks", "train", [two, two]).wait()] == [(0, "")] * 2
    assert run(words(name="one", overrides=settings)) == 0
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-6)
    losses = [
        {key: value for key, value in json.loads(line).items() if "loss" in key}
        for name in ("two", "one")
        for line in (tmp_path / name / "metrics.json").read_text().splitlines()
    ]
    assert losses[0].keys() == {"total_loss", "loss_cls", "loss_box_reg"}
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_sigterm_stops_all_processes_together(words, tmp_path):
    run = start(words("--num-gpus", 2, overrides="SOLVER.MAX_ITER 500"))
    for line in run.stdout:
        if "iteration 1/500" in line:
            break
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 75
    assert error.count("stopped: ") == 1
    assert len(read_file(next((tmp_path / "run").glob("model_*.pth")))["random"]) == 2
