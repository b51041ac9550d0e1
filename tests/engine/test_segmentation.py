"""Semantic FPN and Panoptic FPN train, resume and are evaluated with the trainer of detectors."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pvt_det.api import train
from pvt_det.config import load_config

# 3.6 M parameters, half a second per iteration.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PVT.VARIANT": "pvt_v2_b0",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.AMP.ENABLED": False,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "TEST.VALIDATION_LOSS": True,
    "SEED": 3,
}


@pytest.fixture
def words(shapes, tmp_path):
    """Build the `KEY VALUE` arguments of a tiny run on eight generated images."""

    def make(task: str, folder: str, **changes: object) -> list[str]:
        labels = {"semantic": "semantic", "panoptic": "panoptic_stuff"}[task]
        keys = SMALL | {"OUTPUT_DIR": tmp_path / folder}
        for part, split in (("TRAIN", "train"), ("VAL", "val")):
            keys[f"DATASETS.{part}_IMAGES"] = shapes / split
            keys[f"DATASETS.{part}_LABELS"] = shapes / f"{labels}_{split}"
            if task == "panoptic":
                keys[f"DATASETS.{part}_JSON"] = shapes / f"annotations/instances_{split}.json"
        if task == "panoptic":
            keys["DATASETS.VAL_PANOPTIC_JSON"] = shapes / "annotations/panoptic_val.json"
        keys |= {key.replace("__", "."): value for key, value in changes.items()}
        return [str(word) for pair in keys.items() for word in pair]

    return make


def run(repo_root, task: str, words: list[str], **options) -> dict:
    config = repo_root / f"configs/shapes/{task}_fpn_pvt_tiny.yaml"
    return train(load_config(config, words), config_file=str(config), **options)


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_semantic_fpn_trains_resumes_and_evaluates(repo_root, words, tmp_path):
    periodic = {"SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__CHECKPOINT_KEEP": 2}
    whole = run(repo_root, "semantic", words("semantic", "whole", SOLVER__MAX_ITER=4, **periodic))
    assert set(whole) == {"sem_seg", "validation"}
    assert 0 <= whole["sem_seg"]["mIoU"] <= 100
    assert set(whole["validation"]) == {"total_loss", "loss_sem_seg"}
    results = json.loads((tmp_path / "whole/results.json").read_text())
    assert results["model"] == "Semantic FPN pvt_v2_b0"
    assert "detections" not in results
    assert (tmp_path / "whole" / results["segmentation"]["file"]).is_file()
    assert results["checkpoints"]["best"]["selected_by"] == "sem_seg/mIoU"
    assert {(each["role"], each["what"], len(each["sha256"])) for each in results["data"]} == {
        ("train", "labels", 64),
        ("test", "labels", 64),
    }
    losses = [json.loads(line) for line in (tmp_path / "whole/metrics.json").read_text().splitlines()]
    assert all(math.isfinite(line["total_loss"]) for line in losses if "total_loss" in line)

    before = weights(tmp_path / "whole")
    halfway, _ = sorted((tmp_path / "whole").glob("model_0*.pth"))
    (tmp_path / "whole/last_checkpoint").write_text(halfway.name)
    run(repo_root, "semantic", words("semantic", "whole", SOLVER__MAX_ITER=4), resume=True)
    for name, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_panoptic_fpn_trains_and_evaluates(repo_root, words, tmp_path):
    found = run(repo_root, "panoptic", words("panoptic", "panoptic", SOLVER__MAX_ITER=2))
    assert set(found) == {"bbox", "segm", "sem_seg", "panoptic_seg", "validation"}
    assert 0 <= found["panoptic_seg"]["PQ"] <= 100
    assert {"PQ_th", "PQ_st", "SQ", "RQ", "PQ-background", "PQ-star"} <= set(found["panoptic_seg"])
    assert {"loss_sem_seg", "loss_mask", "loss_rpn_cls"} <= set(found["validation"])
    results = json.loads((tmp_path / "panoptic/results.json").read_text())
    assert results["model"] == "Panoptic FPN pvt_v2_b0"
    assert results["checkpoints"]["best"]["selected_by"] == "panoptic_seg/PQ"
    assert (tmp_path / "panoptic" / results["detections"]["file"]).is_file()
    assert {each["what"] for each in results["data"] if each["role"] == "test"} == {"objects", "labels", "panoptic"}
