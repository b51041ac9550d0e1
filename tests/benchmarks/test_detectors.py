"""The detector suite: both detectors are the same model, and all implementations are timed."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from benchmarks import detectors
from benchmarks.implementations import COMPILED, OURS
from benchmarks.photos import DETECTRON2, build_readers, endless_batches, read_records
from benchmarks.stock import AS_DETECTRON2, build_stock_detector, spread_scores
from pvt_det.config import load_config
from pvt_det.profiling import Case

SMALL = ("MODEL.DEVICE", "cpu", "MODEL.PVT.DROP_PATH_RATE", "0", "INPUT.MIN_SIZE_TRAIN", "[64]")
SMALL += ("INPUT.MIN_SIZE_TEST", "64", "INPUT.RESIZE_BACKEND", "pil", "INPUT.RANDOM_FLIP", "none")


@pytest.mark.parametrize("name", ["retinanet_pvt_tiny", "mask_rcnn_pvt_tiny"])
def test_both_detectors_are_the_same_model(repo_root, coco_mini, name):
    """Both have the same losses and detections, with about as many detections as a trained model."""
    cfg = load_config(repo_root / "configs" / f"{name}.yaml", [*SMALL, *AS_DETECTRON2])
    torch.manual_seed(0)
    ours = build_model(cfg)
    records = read_records(coco_mini, "val2017", 1)
    train, test = (build_readers(cfg, records, is_train=is_train)["pvt_det"](0) for is_train in (True, False))
    spread_scores(ours, [test])
    losses, found = [], []
    for model in (ours, build_stock_detector(cfg, ours)):
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model.train()([train]))
        with torch.no_grad():
            found.append(model.eval()([test])[0]["instances"])
    # Spreading the scores amplifies small differences between untrained features.
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=1e-4)
    assert len(found[0]) == len(found[1]) > 50
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("workers", "names"), [(0, [OURS, DETECTRON2]), (1, [OURS, COMPILED, DETECTRON2])])
def test_detector_suite(repo_root, coco_mini, workers, names):
    config = str(repo_root / "configs/retinanet_pvt_tiny.yaml")
    cases = [Case(config, "detector", mode, "bf16", 1, 48, 64) for mode in ("inference", "training")]
    setup = detectors.Setup(coco_mini, 1, torch.device("cpu"), workers)
    rows = list(detectors.run_detectors(cases, setup, 1, compiled=COMPILED in names, memory=False))
    assert [(row.case.mode, row.implementation, row.case.dtype) for row in rows] == [
        (mode, name, "fp32" if name == DETECTRON2 else "bf16") for mode in ("inference", "training") for name in names
    ]
    assert [row.speedup for row in rows if row.implementation == OURS] == [1, 1]
    assert all(row.seconds > 0 for row in rows)


@pytest.mark.parametrize(("batch", "photos"), [(1, 5), (2, 5), (3, 6), (8, 5)])
def test_graph_recording_uses_each_photo_twice(monkeypatch, tmp_path, batch, photos):
    monkeypatch.setattr(detectors, "read_records", lambda *_: [{}] * photos)
    batches = endless_batches(int, photos, batch, 0, pin=False)
    seen = []
    case = Case("m", "detector", "inference", "bf16", batch, 48, 64)
    setup = detectors.Setup(tmp_path, 9, torch.device("cuda"))
    detectors.record_graphs(lambda: seen.append(next(batches)), case, setup)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert next(batches) == seen[0]
