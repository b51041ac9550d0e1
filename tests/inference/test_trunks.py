"""Trained classifiers have as many classes as their weights."""

from __future__ import annotations

import pytest
import torch

from pvt_det.errors import CheckpointError
from pvt_det.inference.trunks import trained_classifier
from pvt_det.models import create_model
from pvt_det.weights import loader


@pytest.fixture
def reads(monkeypatch):
    """The weight files that are read, in order."""
    files = []
    read_tensors = loader.read_tensors
    monkeypatch.setattr(loader, "read_tensors", lambda path: files.append(path) or read_tensors(path))
    return files


def test_weight_file_is_read_once(tmp_path, reads):
    torch.manual_seed(0)
    model = create_model("pvt_v2_b0", num_classes=5, img_size=32)
    torch.save(model.state_dict(), tmp_path / "five.pth")
    loaded = trained_classifier("pvt_v2_b0", str(tmp_path / "five.pth"), img_size=32)
    assert [path.name for path in reads] == ["five.pth"]
    assert not loaded.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_trunk_weights_are_refused(tmp_path):
    torch.save(create_model("pvt_v2_b0", num_classes=0).state_dict(), tmp_path / "trunk.pth")
    with pytest.raises(CheckpointError, match=r"trunk\.pth"):
        trained_classifier("pvt_v2_b0", str(tmp_path / "trunk.pth"))
