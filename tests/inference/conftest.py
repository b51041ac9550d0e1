"""Fixtures of models to predict with."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from pvt_det.config import load_config


@pytest.fixture(scope="session")
def segmentor_run(repo_root, tmp_path_factory):
    """A run folder of a Semantic FPN with random weights that predict all five classes."""
    folder = tmp_path_factory.mktemp("segmentor")
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.PVT.VARIANT": "pvt_v2_b0",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "INPUT.MIN_SIZE_TEST": 64,
    }
    words = [str(word) for pair in keys.items() for word in pair]
    cfg = load_config(repo_root / "configs/shapes/semantic_fpn_pvt_tiny.yaml", words)
    torch.manual_seed(0)
    model = build_model(cfg)
    predictor = model.sem_seg_head.predictor
    torch.nn.init.normal_(predictor.weight)
    with torch.no_grad():
        pixels = torch.zeros(3, 64, 96, dtype=torch.uint8)
        pixels[:, 20:50, 10:30] = 255
        scores = model.eval()([{"image": pixels}])[0]["sem_seg"]
        # Center the scores, so that no class wins everywhere.
        predictor.bias -= scores.mean((1, 2))
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder
