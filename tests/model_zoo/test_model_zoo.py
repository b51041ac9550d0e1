"""Tests of the recipes and weights by name."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from pvt_det import model_zoo
from pvt_det.config import load_config
from pvt_det.errors import ConfigError
from pvt_det.weights import save_checkpoint
from pvt_det.weights.catalog import CATALOG, Remote


def test_recipe_is_found_by_name_from_anywhere(repo_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = model_zoo.get_config("retinanet_pvt_small")
    assert by_name.dump() == load_config(repo_root / "configs/retinanet_pvt_small.yaml").dump()
    assert load_config("small/retinanet_pvt_tiny_blood_cells").SOLVER.MAX_ITER == 700


def test_config_inherits_from_a_recipe_by_name(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("_BASE_: [retinanet_pvt_small, base/small]\nSOLVER: {MAX_ITER: 12, WARMUP_ITERS: 0}\n")
    cfg, small = load_config(mine), load_config(model_zoo.get_config_file("small/retinanet_pvt_tiny_blood_cells"))
    assert (cfg.MODEL.PVT.VARIANT, cfg.SOLVER.MAX_ITER) == ("pvt_small", 12)
    assert cfg.SOLVER.IMS_PER_BATCH == small.SOLVER.IMS_PER_BATCH


def test_file_wins_over_a_recipe_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retinanet_pvt_small").mkdir()
    with pytest.raises(ConfigError, match="retinanet_pvt_small is a folder"):
        load_config("retinanet_pvt_small")


@pytest.mark.parametrize("name", ["retinanet_pvt_smal", "../setup", "/etc/passwd", "base/../../setup", "small"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ConfigError, match="not the name of a recipe"):
        model_zoo.get_config(name)


def test_misspelled_run_folder_is_corrected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output/bc").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"output/bcc is not a file.* Did you mean output/bc\? Expected a run folder"):
        load_config("output/bcc")


def test_misspelled_name_is_corrected():
    with pytest.raises(ConfigError, match=r"Did you mean .*retinanet_pvt_small"):
        model_zoo.get_config("retinanet_pvt_smal")


def test_trained_weights():
    url = model_zoo.get_checkpoint_url("retinanet_pvt_small")
    assert url == CATALOG["retinanet_pvt-s_fpn_1x_coco"].url
    assert model_zoo.get_config("retinanet_pvt_small").MODEL.WEIGHTS == "pvt://pvt_small"
    assert (
        model_zoo.get_config("retinanet_pvt_small", trained=True).MODEL.WEIGHTS == "pvt://retinanet_pvt-s_fpn_1x_coco"
    )
    with pytest.raises(ConfigError, match=r"mask_rcnn_pvt_small: no weights .* retinanet_pvt_tiny"):
        model_zoo.get_checkpoint_url("mask_rcnn_pvt_small")


def test_every_trained_detector_has_a_recipe_and_a_file():
    for recipe in model_zoo.DETECTORS:
        assert model_zoo.get_checkpoint_url(recipe).endswith(".pth")


def test_get_builds_the_model_with_the_trained_weights(tmp_path, monkeypatch):
    cfg = model_zoo.get_config("retinanet_pvt_v2_b0")
    cfg.MODEL.DEVICE = "cpu"
    source = build_model(cfg)
    save_checkpoint(tmp_path / "b0.pth", source.state_dict())
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path))
    monkeypatch.setitem(CATALOG, model_zoo.DETECTORS["retinanet_pvt_v2_b0"], Remote("https://example.org", "b0.pth"))
    model = model_zoo.get("retinanet_pvt_v2_b0", trained=True, device="cpu")
    assert not model.training
    assert all(torch.equal(weight, source.state_dict()[name]) for name, weight in model.state_dict().items())
