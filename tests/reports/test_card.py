"""Model cards, and the folder with card, weights and config that is shared or pushed to the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from pvt_det.config import load_config
from pvt_det.config.architecture import model_name
from pvt_det.errors import ConfigError
from pvt_det.reports.card import push, write_card, write_folder
from pvt_det.reports.card_page import Terms
from pvt_det.utils.digest import file_digest
from pvt_det.weights import read_checkpoint

CONFIG = Path(__file__).parents[2] / "configs/shapes/retinanet_pvt_tiny.yaml"


@pytest.fixture
def run(tmp_path):
    """A run folder after training, with weights of two tensors."""
    folder = tmp_path / "run"
    folder.mkdir()
    train = tmp_path / "secret place" / "train.json"
    train.parent.mkdir()
    train.write_text(json.dumps({"images": [{}] * 7, "annotations": [{}] * 30, "categories": []}))
    cfg = load_config(CONFIG, ["DATASETS.TRAIN_JSON", str(train), "OUTPUT_DIR", str(folder)])
    cfg.DATASETS.CLASS_NAMES = ["red cell", "white cell"]
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": {"a": torch.arange(3.0), "b": torch.ones(2)}, "iteration": 5}, folder / "model_best.pth")
    results = {
        "config_file": "configs/mine.yaml",
        "model": "RetinaNet pvt_tiny",
        "recipe": "adamw lr 0.001",
        "kind": "training",
        "dataset": "blood_val",
        "parameters": 14431560,
        "checkpoints": {
            "best": {
                "file": "model_best.pth",
                "sha256": file_digest(folder / "model_best.pth"),
                "iteration": 6,
                "metrics": {"bbox": {"AP": 61.54, "AP50": 88.2, "APl": None, "AP-red cell": 70.0}},
            },
            "final": {"file": "model_final.pth", "sha256": "0" * 64, "metrics": {"bbox": {"AP": 1.0}}},
        },
        "shown": "final",
        "data": [],
        "seed": 7,
        "environment": {"device": "a processor", "versions": {"torch": "2.14"}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_shared_folder_has_card_weights_and_config(run, tmp_path):
    output = tmp_path / "share"
    write_folder(run, output, Terms("cc-by-4.0", "cc0-1.0", "Ada Lovelace"))
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]

    tensors = read_checkpoint(output / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"a": [0, 1, 2], "b": [1, 1]}
    assert load_config(output / "config.yaml").DATASETS.CLASS_NAMES == ["red cell", "white cell"]

    card = (output / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["pipeline_tag"] == "object-detection"
    metrics = header["model-index"][0]["results"][0]["metrics"]
    assert metrics == [{"type": "bbox/AP", "value": 61.54}, {"type": "bbox/AP50", "value": 88.2}]
    for line in (
        "train.json, 7 images, 30 objects",
        "classes: red cell, white cell",
        "recipe: adamw lr 0.001",
        "seed: 7",
        "versions: torch 2.14",
        "- weights: cc-by-4.0",
        "- training data: cc0-1.0",
        "trained by: Ada Lovelace",
        "| boxes | 61.5 | 88.2 | - |",
    ):
        assert line in card, line


def test_card_of_an_earlier_version_states_the_best_value_only(run, tmp_path):
    """The other metrics in its results.json belong to the last checkpoint."""
    results = json.loads((run / "results.json").read_text())
    old = {key: value for key, value in results.items() if key not in ("kind", "checkpoints", "shown", "data")}
    old |= {"metrics": {"bbox": {"AP": 1.0, "AP50": 3.0}}, "results_file": "", "annotations": "", "iterations": 9}
    old["best"] = {"metric": "bbox/AP", "value": 61.54, "iteration": 6}
    (run / "results.json").write_text(json.dumps(old))
    write_folder(run, tmp_path / "share", Terms())
    card = (tmp_path / "share/README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]["metrics"] == [
        {"type": "bbox/AP", "value": 61.54}
    ]
    assert "The results do not record the digest of model_best.pth" in card


def test_shared_folder_has_no_local_paths(run, tmp_path):
    output = tmp_path / "share"
    write_folder(run, output, Terms())
    for name in ("README.md", "config.yaml"):
        assert str(tmp_path) not in (output / name).read_text()
    assert "- weights: not stated" in (output / "README.md").read_text()


def test_run_folder_is_refused_as_output(run):
    with pytest.raises(ConfigError, match="Choose another folder with --output"):
        write_folder(run, run, Terms())


def test_card_in_run_folder_does_not_replace_a_users_readme(run):
    cfg = load_config(run / "config.yaml")
    write_card(run, cfg)
    card = (run / "README.md").read_text()
    assert "pvt-det predict photo.jpg --config-file .\n" in card
    assert 'Predictor(".")("photo.jpg")' in card
    assert str(run) not in card
    results = json.loads((run / "results.json").read_text())
    results["checkpoints"]["best"]["metrics"] = {}
    (run / "results.json").write_text(json.dumps(results))
    write_card(run, cfg)
    assert "## Results\n\nNot evaluated.\n" in (run / "README.md").read_text()
    (run / "README.md").write_text("# My notes\n")
    write_card(run, cfg)
    assert (run / "README.md").read_text() == "# My notes\n"


def test_push_creates_the_repository_before_uploading():
    calls = []

    class FakeHub:
        def create_repo(self, repo_id, *, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, folder_path))

    push(Path("share"), "ada/cells", FakeHub(), private=True)
    assert calls == [("create", "ada/cells", True, True), ("upload", "ada/cells", "share")]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("cascade_mask_rcnn_pvt_small", "Cascade Mask R-CNN pvt_small"),
        ("mask_rcnn_R_50", "Mask R-CNN R50"),
        ("faster_rcnn_pvt_small", "Faster R-CNN pvt_small"),
        ("retinanet_pvt_v2_b0", "RetinaNet pvt_v2_b0"),
        ("semantic_fpn_pvt_tiny", "Semantic FPN pvt_tiny"),
        ("panoptic_fpn_pvt_small", "Panoptic FPN pvt_small"),
    ],
)
def test_model_names(repo_root, config, name):
    assert model_name(load_config(repo_root / f"configs/{config}.yaml")) == name
