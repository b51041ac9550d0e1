"""Detectron2's DetectionCheckpointer loads published weights by their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from pvt_det.config import load_config
from pvt_det.errors import CheckpointError
from pvt_det.modeling.backbone import create_backbone
from pvt_det.models import create_model


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Put a classifier with random weights into the cache under the name of a published file."""
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path))

    def write(name):
        weights = create_model(name, num_classes=10).state_dict()
        torch.save(weights, tmp_path / f"{name}.pth")
        return weights

    return write


@pytest.mark.parametrize("variant", ["pvt_tiny", "pvt_v2_b0"])
def test_classifier_in_a_detector(cached, repo_root, variant):
    weights = cached(variant)
    config = repo_root / "configs/retinanet_pvt_tiny.yaml"
    model = build_model(load_config(config, ["MODEL.DEVICE", "cpu", "MODEL.PVT.VARIANT", variant]))
    heads = {name: tensor.clone() for name, tensor in model.state_dict().items() if "bottom_up" not in name}
    DetectionCheckpointer(model).load(f"pvt://{variant}")
    state = model.state_dict()
    trunk = {name.removeprefix("backbone.bottom_up."): state[name] for name in state if "bottom_up" in name}
    assert trunk.keys() <= weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trunk.items())
    assert all(torch.equal(state[name], tensor) for name, tensor in heads.items())


def test_classifier_in_a_backbone_without_fpn(cached):
    weights = cached("pvt_v2_b0")
    backbone = create_backbone("pvt_v2_b0")
    DetectionCheckpointer(backbone).load("pvt://pvt_v2_b0")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())


def test_file_is_converted_once(cached):
    cached("pvt_v2_b0")
    path = PathManager.get_local_path("pvt://pvt_v2_b0")
    written = torch.load(path)["model"]
    assert not any(name.startswith("head.") for name in written)
    with PathManager.open("pvt://pvt_v2_b0", "rb") as file:
        assert file.name == path
    cached("pvt_v2_b0")  # other weights under the same name
    (Path(path).parents[1] / "sha256.json").unlink()
    assert PathManager.get_local_path("pvt://pvt_v2_b0") != path


def test_unknown_name():
    with pytest.raises(CheckpointError, match="Did you mean pvt_small"):
        PathManager.get_local_path("pvt://pvt_smal")
