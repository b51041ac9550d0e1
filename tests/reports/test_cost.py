"""GMACs of a whole detector at the size of its test images."""

import json

import pytest
import torch

from pvt_det.config import load_config
from pvt_det.models import create_model
from pvt_det.models.complexity import count_gmacs
from pvt_det.reports.compare import describe_gmacs


@pytest.fixture
def annotations(tmp_path):
    """An annotation file whose median image is 80 pixels high and 100 wide."""
    file = tmp_path / "truth.json"
    sizes = [(80, 100), (80, 100), (500, 20)]
    images = [{"id": i, "height": h, "width": w, "file_name": f"{i}.jpg"} for i, (h, w) in enumerate(sizes)]
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return file


def test_detector_costs_more_than_its_trunk(repo_root, tmp_path, annotations):
    overrides = ["MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "128"]
    cfg = load_config(repo_root / "configs/retinanet_pvt_tiny.yaml", overrides)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    gmacs, size = describe_gmacs(tmp_path / "config.yaml", annotations).split()
    assert size == "(128x160)"
    trunk = count_gmacs(create_model("pvt_tiny", num_classes=0).forward_pyramid, torch.zeros(1, 3, 128, 160))
    assert 1.5 * trunk < float(gmacs) < 10 * trunk


def test_unusable_config_gives_a_warning(tmp_path, annotations, caplog):
    assert describe_gmacs(tmp_path / "absent.yaml", annotations) == "-"
    assert "absent.yaml" in caplog.text
