"""Tests of `pvt-det inspect`: exit codes, the page, and the config that it writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.config import load_config
from pvt_det.errors import CheckpointError
from pvt_det.utils.cli import run_cli
from tests.command_line import run_command
from tests.scripts import dataset_script

write_shapes = dataset_script("make_shapes").write_shapes

ROOT = Path(__file__).parents[2]


def main(*words):
    return run_cli(lambda: run_command("inspect", [str(word) for word in words]))


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    """Pretend that all weights can be downloaded; returns the list of requested names."""
    requested: list[str] = []
    monkeypatch.setattr("pvt_det.weights.source.locate", requested.append)
    return requested


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=8, val=3)
    return folder


@pytest.fixture
def words(shapes):
    return [shapes / "annotations/instances_train.json", shapes / "train"]


@pytest.fixture
def both(shapes, words):
    return [*words, "--val-json", shapes / "annotations/instances_val.json", "--val-images", shapes / "val"]


def broken(words, tmp_path, **values) -> list[Path]:
    content = json.loads(Path(words[0]).read_text())
    content["annotations"][0].update(values)
    (tmp_path / "broken.json").write_text(json.dumps(content))
    return [tmp_path / "broken.json", words[1]]


def test_config_and_page(both, tmp_path, capsys):
    config, page = tmp_path / "mine.yaml", tmp_path / "page.html"
    assert main(*both, "--write-config", config, "--html", page, "--weights", "none", "--device", "cpu") == 0
    output = capsys.readouterr().out
    assert "8, 0 of them without objects" in output
    assert str(config) in output
    cfg = load_config(config)
    assert cfg.MODEL.MASK_ON  # every shape has a mask
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == len(cfg.DATASETS.CLASS_NAMES) == 4
    assert Path(cfg.DATASETS.VAL_JSON) == Path(both[3]).resolve()
    assert cfg.MODEL.WEIGHTS == ""
    assert pytest.approx(800, abs=4) == cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH  # 100 epochs
    text = config.read_text()
    for key in ("SIZES", "MIN_SIZE_TRAIN", "MAX_ITER", "BASE_LR", "DETECTIONS_PER_IMAGE"):
        assert re.search(rf"(#[^\n]*\n\s+{key}:)|({key}: [^\n]*#)", text), f"{key} has no reason"
    assert max(map(len, text.splitlines()[2:])) < 200
    assert page.read_text().count("data:image/jpeg") >= 8 + 3
    assert main(*both, "--write-config", config) == 2  # an existing config is not overwritten


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize(("task", "head"), [("retinanet", "RETINANET"), ("mask-rcnn", "ROI_MASK_HEAD")])
def test_unavailable_weights_fall_back_to_random_weights(words, tmp_path, capsys, monkeypatch, device, task, head):
    def fail(name):
        raise CheckpointError(f"{name} [no network]")

    monkeypatch.setattr("pvt_det.weights.source.locate", fail)
    config = tmp_path / "mine.yaml"
    assert main(*words, "--write-config", config, "--task", task, "--device", device) == 0
    assert "random weights: pvt://pvt_tiny [no network]" in capsys.readouterr().out
    assert "Random weights: pvt://pvt_tiny could not be downloaded." in config.read_text()
    cfg = load_config(config)
    assert cfg.MODEL.WEIGHTS == ""
    assert cfg.MODEL.FPN.NORM == cfg.MODEL[head].NORM == "GN"
    assert cfg.MODEL.PVT.DROP_PATH_RATE == 0
    assert pytest.approx(4e-4 * (cfg.SOLVER.IMS_PER_BATCH / 4) ** 0.5) == cfg.SOLVER.BASE_LR


def test_retinanet_on_gpus_from_pretrained_weights(words, tmp_path, reachable):
    config = tmp_path / "mine.yaml"
    assert main(*words, "--write-config", config, "--task", "retinanet", "--device", "gpu", "--model", "pvt_small") == 0
    cfg = load_config(config)
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PVT.VARIANT) == ("PVTRetinaNet", "pvt_small")
    assert [cfg.MODEL.WEIGHTS] == reachable == ["pvt://pvt_small"]
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert cfg.DATASETS.VAL_JSON == ""


@pytest.mark.parametrize(
    ("values", "options", "code"),
    [
        ({"bbox": [500, 2, 3, 4]}, [], 3),
        ({"bbox": [500, 2, 3, 4]}, ["--on-error", "skip"], 0),
        ({"area": None}, [], 0),
        ({"area": None}, ["--strict"], 3),
    ],
)
def test_exit_code(words, tmp_path, capsys, values, options, code):
    assert main(*broken(words, tmp_path, **values), *options) == code
    output = capsys.readouterr().out
    assert ("refused: 1 x" in output) == (code == 3)
    assert "annotation " in output


def test_refused_data_gets_page_but_no_config(words, tmp_path):
    page, config = tmp_path / "page.html", tmp_path / "c.yaml"
    words = broken(words, tmp_path, bbox=[100, 2, 3e4, 4], category_id=77, image_id=1)
    assert main(*words, "--html", page, "--write-config", config) == 3
    assert not config.exists()
    text = page.read_text()
    assert "unknown category_id" in text
    assert re.search(
        r"1 of 1: annotation with an unknown category_id</summary>\s*<div class=\"gallery\"><figure>", text
    )


def test_data_without_usable_images_is_refused(words, tmp_path, capsys):
    content = json.loads(Path(words[0]).read_text())
    for image in content["images"]:
        image["width"] += 7
    (tmp_path / "sizes.json").write_text(json.dumps(content))
    assert main(tmp_path / "sizes.json", words[1]) == 3
    assert "refused: 8 x " in capsys.readouterr().out


def test_special_characters_are_escaped_in_config_and_page(words, tmp_path):
    content = json.loads(Path(words[0]).read_text())
    names = ["a: b # c", 'd" \\n _BASE_: x', "<script>alert(1)</script>", "e\u00a0\U0001f600"]
    for category, name in zip(content["categories"], names, strict=True):
        category["name"] = name
    folder = tmp_path / "it's: #odd"
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps(content))
    config, page = folder / "c.yaml", folder / "c.html"
    assert main(folder / "x.json", words[1], "--write-config", config, "--html", page) == 0
    cfg = load_config(config)
    assert names == cfg.DATASETS.CLASS_NAMES
    assert Path(cfg.DATASETS.TRAIN_JSON) == folder / "x.json"
    assert "<script" not in page.read_text()


def test_leakage_is_reported(words, capsys):
    assert main(*words, "--val-json", words[0]) == 0
    assert "8 x images that are also in the training data" in capsys.readouterr().out.replace("\n", " ")
    assert main(*words, "--val-json", words[0], "--strict") == 3


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (["circle", "square", "triangle"], "without star"),
        (["circle", "square", "triangle", "x"], "without star and with x"),
        (["square", "circle", "triangle", "star"], "in a different order"),
    ],
)
def test_different_validation_classes_are_refused(words, tmp_path, capsys, names, difference):
    content = json.loads(Path(words[0]).read_text())
    by_old_id = sorted(content["categories"], key=lambda category: category["id"])
    content["categories"] = [{"id": c["id"], "name": name} for c, name in zip(by_old_id, names, strict=False)]
    known = {category["id"] for category in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in known]
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = tmp_path / "c.yaml"
    assert main(*words, "--val-json", tmp_path / "val.json", "--on-error", "skip", "--write-config", config) == 3
    output = " ".join(capsys.readouterr().out.split())
    expected = f"different classes than in the training data (names in the order of their ids): {difference}"
    assert f"refused: 1 x {expected}" in output
    assert not config.exists()


def test_voc_splits_share_classes_and_masks_need_both_splits(words, both, tmp_path):
    """Pascal VOC lists only classes that occur, so a split without circles is valid."""
    objects = {"train": ["star", "circle"], "val": ["star"]}
    for part, names in objects.items():
        (tmp_path / part).mkdir()
        Image.fromarray(np.full((40, 60, 3), len(names) * 99, np.uint8)).save(tmp_path / part / "1.png")
        boxes = "".join(
            f"<object><name>{name}</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>25</xmax><ymax>25</ymax></bndbox></object>"
            for name in names
        )
        (tmp_path / part / "1.xml").write_text(f"<annotation><filename>1.png</filename>{boxes}</annotation>")
    config, (train, val) = tmp_path / "c.yaml", [tmp_path / part for part in objects]
    assert main(train, train, "--val-json", val, "--val-images", val, "--write-config", config) == 0
    cfg = load_config(config)
    assert cfg.DATASETS.CLASS_NAMES == ["circle", "star"]
    found = json.loads(Path(cfg.DATASETS.VAL_JSON).read_text())
    assert {c["id"]: c["name"] for c in found["categories"]}[found["annotations"][0]["category_id"]] == "star"
    assert len(found["categories"]) == 2

    content = json.loads(Path(both[3]).read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    config = tmp_path / "d.yaml"
    both[3] = tmp_path / "boxes.json"
    assert main(*both, "--write-config", config) == 0
    assert not load_config(config).MODEL.MASK_ON


def test_yolo_data_is_converted_to_coco_next_to_the_config(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [cell]\n")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        (tmp_path / f"labels/{number}.txt").write_text("0 .5 .5 .3 .4\n")
    config = tmp_path / "cells.yaml"
    assert main(tmp_path / "labels", tmp_path / "images", "--write-config", config) == 0
    cfg = load_config(config)
    assert Path(cfg.DATASETS.TRAIN_JSON) == tmp_path / "cells_train.json"
    assert json.loads((tmp_path / "cells_train.json").read_text())["annotations"][0]["bbox"] == [21, 12, 18, 16]


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main("--help")
    assert stop.value.code == 0
    assert "--write-config mine.yaml" in capsys.readouterr().out
