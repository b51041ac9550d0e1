"""`pvt_det.inspect` returns what `pvt-det inspect` prints."""

from __future__ import annotations

import json

import pytest

import pvt_det
from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from tests.command_line import run_command

CLASSES = ["circle", "square", "triangle", "star"]


def test_result_has_what_the_command_prints(shapes, tmp_path, capsys):
    annotations, images = shapes / "annotations/instances_train.json", shapes / "train"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"] = [5000, 2, 3, 4]
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    val = (shapes / "annotations/instances_val.json", shapes / "val")
    found = pvt_det.inspect(broken, images, val=val, html=tmp_path / "page.html", on_error="stop")
    assert capsys.readouterr().out == ""
    assert (found.is_accepted, found.class_names) == (False, CLASSES)
    assert found.train.statistics.images == 8
    assert found.val.statistics.images == 3
    assert [path for path, _ in found.written] == [tmp_path / "page.html"]
    assert len(found.problems) == 1
    assert found.problems[0].startswith("refused: 1 x ")
    assert "leave the broken parts out with `on_error` skip" in found.refusal
    options = ["--val-json", val[0], "--val-images", val[1], "--html", tmp_path / "page.html"]
    assert run_command("inspect", [broken, images, *options]) == 3
    printed = " ".join(capsys.readouterr().out.split())
    assert " ".join(found.problems[0].split()) in printed


def test_config_for_training_is_written(shapes, tmp_path):
    found = pvt_det.inspect(
        shapes / "annotations/instances_train.json",
        shapes / "train",
        write_config=tmp_path / "mine.yaml",
        weights="none",
        device="cpu",
    )
    assert found.is_accepted
    assert found.written[0][0] == tmp_path / "mine.yaml"
    assert load_config(tmp_path / "mine.yaml").DATASETS.CLASS_NAMES == CLASSES


def test_errors_name_the_arguments(shapes):
    with pytest.raises(ConfigError, match=r"^`batch` has no effect without `write_config` FILE"):
        pvt_det.inspect(shapes / "annotations/instances_train.json", shapes / "train", batch=2)
