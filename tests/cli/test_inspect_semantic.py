"""`pvt-det inspect` on label maps: exit codes, the page, and the config that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.config import load_config
from pvt_det.data.sets import register_datasets
from pvt_det.utils.cli import run_cli
from tests.command_line import run_command

NAMES = ["road", "car", "tree"]


def main(*words) -> int:
    return run_cli(lambda: run_command("inspect", words))


@pytest.fixture(autouse=True)
def _reachable(monkeypatch):
    """Pretend that all weights can be downloaded."""
    monkeypatch.setattr("pvt_det.inspection.plan.locate", lambda name: None)


@pytest.fixture
def data(tmp_path) -> Path:
    """Labels 0 to 2, and 3 for void, of six training and two validation images."""
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / part / kind).mkdir(parents=True)
        for number in range(count):
            labels = random.integers(0, 4, (3, 4)).repeat(16, axis=0).repeat(16, axis=1).astype(np.uint8)
            labels[:16] = [0] * 16 + [1] * 16 + [2] * 16 + [3] * 16
            Image.fromarray(labels).save(tmp_path / part / f"labels/{number}.png")
            pixels = random.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"images/{number}.jpg")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    return tmp_path


@pytest.fixture
def words(data) -> list:
    return [data / "train/labels", data / "train/images"]


@pytest.fixture
def both(data, words) -> list:
    return [*words, "--val-labels", data / "val/labels", "--val-images", data / "val/images"]


@pytest.mark.parametrize("names", ["names.txt", "names.json"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_config_is_complete(data, both, capsys, names, device):
    config, page = data / "mine.yaml", data / "page.html"
    options = ["--class-names", data / names, "--write-config", config, "--html", page, "--device", device]
    assert main(*both, *options, "--model", "pvt_v2_b0") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "value 3," in output
    assert "the only value without a name" in output
    cfg = load_config(config)
    head = cfg.MODEL.SEM_SEG_HEAD
    assert (head.IGNORE_VALUE, head.NUM_CLASSES, cfg.DATASETS.LABEL_NAMES) == (3, 3, NAMES)
    assert cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    assert (cfg.MODEL.PVT.VARIANT, cfg.MODEL.WEIGHTS) == ("pvt_v2_b0", "pvt://pvt_v2_b0")
    assert cfg.INPUT.CROP.ENABLED
    assert list(cfg.INPUT.CROP.SIZE) == [{"cpu": 64, "gpu": 96}[device]] * 2
    assert pytest.approx(300 * 6, abs=160) == cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    assert cfg.SOLVER.MAX_ITER % cfg.TEST.EVAL_PERIOD == 0
    register_datasets(cfg)  # training accepts the data
    text = page.read_text()
    assert text.count("data:image/jpeg") == 2 * (6 + 2)
    assert "Overlap of the data sets" in text


def test_void_that_is_not_named_is_suggested(words, data, capsys):
    assert main(*words) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "if 3, the highest, marks pixels without a class, add --ignore-value 3" in output
    config = data / "mine.yaml"
    assert main(*words, "--ignore-value", 3, "--write-config", config, "--weights", "none") == 0
    cfg = load_config(config)
    assert (cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (3, 3)
    assert cfg.DATASETS.LABEL_NAMES == ["class 0", "class 1", "class 2"]
    assert cfg.MODEL.WEIGHTS == ""


def test_label_maps_in_color_are_refused_with_a_script(words, data, capsys):
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128]], np.uint8)
    for file in words[0].iterdir():
        Image.fromarray(colors[np.array(Image.open(file))]).save(file)
    assert main(*words, "--html", data / "page.html") == 3
    output = capsys.readouterr().out
    assert "6 x label map in color instead of class numbers" in output
    assert "(128, 0, 0)" in output
    assert "Training would refuse this data." in output
    assert "(128, 0, 0)" in (data / "page.html").read_text()


def test_exit_codes(words, data, capsys):
    (words[0] / "0.png").unlink()
    assert main(*words) == 3
    assert main(*words, "--on-error", "skip") == 0
    assert main(*words, "--task", "semantic", "--strict") == 3
    assert main(words[1], words[0], "--task", "semantic") == 3
    assert "Swap the folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-json", "x.json"], "--val-json has no effect on label maps (--task semantic). Use --val-labels."),
        (["--allow-outside"], "--allow-outside has no effect on label maps"),
        (["--ignore-value", "300"], "--ignore-value 300: expected 0 to 255."),
        (["--task", "retinanet", "--ignore-value", "3"], "--ignore-value has no effect without label maps"),
        (["--batch", "2"], "--batch has no effect without --write-config"),
    ],
)
def test_options_of_other_data_are_refused(words, capsys, options, message):
    assert main(*words, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
