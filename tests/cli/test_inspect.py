"""Tests of `pvt-det inspect`: exit codes, the page, and the config that it writes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image

from pvt_det.config import load_config
from pvt_det.data.loader import build_detection_train_loader
from pvt_det.data.sets import register_datasets
from pvt_det.errors import CheckpointError
from pvt_det.solver.build import build_optimizer
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
    monkeypatch.setattr("pvt_det.inspection.plan.locate", requested.append)
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
    assert max(map(len, text.splitlines()[3:])) < 200
    assert page.read_text().count("data:image/jpeg") >= 8 + 3
    assert main(*both, "--write-config", config) == 2  # an existing config is not overwritten


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize(("task", "head"), [("retinanet", "RETINANET"), ("gfl", "GFL"), ("mask-rcnn", "ROI_MASK_HEAD")])
def test_unavailable_weights_fall_back_to_random_weights(words, tmp_path, capsys, monkeypatch, device, task, head):
    def fail(name):
        raise CheckpointError(f"{name} [no network]")

    monkeypatch.setattr("pvt_det.inspection.plan.locate", fail)
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


def flat(cfg, prefix=""):
    for key, value in cfg.items():
        yield from flat(value, f"{prefix}{key}.") if hasattr(value, "items") else [(f"{prefix}{key}", value)]


@pytest.mark.parametrize("weights", [[], ["--weights", "none"]], ids=["pretrained", "random"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("task", ["retinanet", "atss", "mask-rcnn"])
def test_another_backbone_gets_the_same_recipe(words, tmp_path, reachable, task, device, weights):
    configs = []
    for model in ("pvt_tiny", "R_18"):
        file = tmp_path / f"{model}.yaml"
        options = ["--model", model, "--task", task, "--device", device, *weights]
        assert main(*words, "--write-config", file, *options) == 0
        assert f"with the backbone {model}, written by pvt-det inspect for 8 images" in file.read_text()
        configs.append(load_config(file))
    pvt, resnet = (dict(flat(cfg)) for cfg in configs)
    different = {key for key in pvt if pvt[key] != resnet[key]}
    backbone = {
        "MODEL.BACKBONE.NAME",
        "MODEL.RESNETS.DEPTH",
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        "MODEL.FPN.IN_FEATURES",
    }
    assert backbone <= different
    allowed = r"MODEL\.(BACKBONE|PVT|RESNETS)\..*|MODEL\.FPN\.IN_FEATURES|MODEL\.WEIGHTS|OUTPUT_DIR"
    assert not [key for key in different if not re.fullmatch(allowed, key)]
    assert resnet["SOLVER.OPTIMIZER"] == "adamw"
    if weights:
        # Nothing is frozen that has random weights.
        assert (resnet["MODEL.BACKBONE.FREEZE_AT"], resnet["MODEL.RESNETS.NORM"]) == (0, "BN")
    else:
        assert reachable == ["pvt://pvt_tiny", "torchvision://resnet18"]
        assert (resnet["MODEL.BACKBONE.FREEZE_AT"], resnet["MODEL.RESNETS.NORM"]) == (2, "FrozenBN")


@pytest.mark.parametrize("model", ["retinanet_pvt_v2_b0", "retinanet_R_18", "atss_pvt_v2_b0", "gfl_R_18"])
def test_written_config_trains(words, tmp_path, model):
    config = tmp_path / "c.yaml"
    assert main(*words, "--write-config", config, "--model", model, "--device", "cpu", "--weights", "none") == 0
    convs = f"MODEL.{model.partition('_')[0].upper()}.NUM_CONVS"
    cfg = load_config(config, ["INPUT.MIN_SIZE_TRAIN", "[64]", "MODEL.FPN.OUT_CHANNELS", "64", convs, "1"])
    cfg.DATALOADER.NUM_WORKERS = 0
    register_datasets(cfg)
    detector = build_model(cfg)
    optimizer = build_optimizer(cfg, detector)
    frozen = [name for name, parameter in detector.named_parameters() if not parameter.requires_grad]
    assert not [name for name in frozen if "bottom_up" in name and "res" in name]
    with EventStorage():
        losses = detector(next(iter(build_detection_train_loader(cfg))))
    sum(losses.values()).backward()
    before = next(detector.backbone.bottom_up.parameters()).clone()
    optimizer.step()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert not torch.equal(before, next(detector.backbone.bottom_up.parameters()))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("R_19", "Did you mean R_18?"),
        ("pvt_tny", "Did you mean pvt_tiny?"),
        ("retinanet_R50_3x", "Did you mean retinanet_R_50?"),
        ("swin", "Expected one of pvt_tiny, "),
    ],
)
def test_unknown_model_names_the_closest(words, tmp_path, capsys, model, message):
    assert main(*words, "--write-config", tmp_path / "c.yaml", "--model", model) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "task"), [("mask_rcnn_R_50", "ROI_HEADS"), ("configs/retinanet_R_50.yaml", "RETINANET")]
)
def test_config_name_sets_the_task(words, tmp_path, capsys, model, task):
    assert main(*words, "--write-config", tmp_path / "c.yaml", "--model", model) == 0
    cfg = load_config(tmp_path / "c.yaml")
    assert (50, 4, task == "ROI_HEADS") == (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL[task].NUM_CLASSES, cfg.MODEL.MASK_ON)
    other = "retinanet" if task == "ROI_HEADS" else "mask-rcnn"
    assert main(*words, "--write-config", tmp_path / "d.yaml", "--model", model, "--task", other) == 2
    assert f"but --task is {other}" in capsys.readouterr().err


def test_published_recipe_sets_the_task(words, tmp_path, reachable):
    """Its schedule is COCO's, and its anchors are squares."""
    assert main(*words, "--write-config", tmp_path / "c.yaml", "--model", "gfl_pvt_v2_b2_li_3x") == 0
    cfg = load_config(tmp_path / "c.yaml")
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PVT.VARIANT, cfg.MODEL.GFL.NUM_CLASSES) == ("GFL", "pvt_v2_b2_li", 4)
    assert cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS == [[1.0]]
    assert {len(sizes) for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES} == {1}
    assert cfg.MODEL.FPN.P6_INPUT == "fpn"


def test_annotations_are_converted_for_the_classes_of_a_run(words, tmp_path, capsys):
    """A test set may lack classes of the model, and Pascal VOC only names those that occur."""
    run = tmp_path / "run"
    run.mkdir()
    base = ROOT / "configs/retinanet_pvt_tiny.yaml"
    (run / "config.yaml").write_text(f"_BASE_: {base}\nDATASETS: {{CLASS_NAMES: [circle, square, triangle, star]}}\n")
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>25</xmax><ymax>25</ymax></bndbox>"
    xml = tmp_path / "1.xml"
    xml.write_text(f"<annotation><object><name>star</name>{box}</object></annotation>")
    file = tmp_path / "test.json"
    assert main(tmp_path, "--write-json", file, "--classes-of", run) == 0
    assert f"Wrote {file}" in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert [c["name"] for c in content["categories"]] == ["circle", "square", "triangle", "star"]
    assert content["annotations"][0]["category_id"] == 4
    assert main(tmp_path, "--write-json", file) == 2  # an existing file is not overwritten
    xml.write_text(xml.read_text().replace("star", "moon"))
    assert main(tmp_path, "--write-json", tmp_path / "more.json", "--classes-of", run) == 3
    assert "without circle, square, triangle, star and with moon" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "more.json").exists()
    assert main(*words, "--write-json", tmp_path / "more.json") == 2
    assert "COCO JSON already" in capsys.readouterr().err
    assert main(*words, "--classes-of", ROOT / "configs/retinanet_R_50.yaml") == 2
    assert "has no DATASETS.CLASS_NAMES" in capsys.readouterr().err


def test_swapped_arguments(words, capsys):
    assert main(*reversed(words)) == 3
    assert "they are swapped. Give the annotations first: " in capsys.readouterr().err


def test_yolo_data_is_converted_to_coco_next_to_the_config(tmp_path, capsys):
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
    output = " ".join(capsys.readouterr().out.split())
    assert f"Wrote {tmp_path / 'cells_train.json'} training data as COCO JSON" in output
    assert f"Wrote {config} config for this data Train with: pvt-det train --config-file {config}" in output
    # Refused data leaves no files.
    (tmp_path / "labels/0.txt").write_text("7 .5 .5 .3 .4\n")
    assert main(tmp_path, "--write-config", tmp_path / "more.yaml") == 3
    assert "Correct it, or leave the broken parts out with --on-error skip" in capsys.readouterr().out
    assert not list(tmp_path.glob("more*"))
    assert main(tmp_path, "--write-config", tmp_path / "more.yaml", "--on-error", "skip") == 0
    assert load_config(tmp_path / "more.yaml").DATASETS.ON_ERROR == "skip"


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main("--help")
    assert stop.value.code == 0
    assert "--write-config mine.yaml" in capsys.readouterr().out
