"""Detections survive the way to supervision and back: boxes, masks, track ids, names, and none at all."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from pvt_det.errors import ConfigError, DataError
from pvt_det.inference.predictions import Detections
from pvt_det.interop import from_supervision, to_supervision
from pvt_det.structures.masks import RunLengthMasks

sv = pytest.importorskip("supervision", reason="the extra supervision is not installed")
SIZE = (40, 60)


def detections(count: int = 2, **more) -> Detections:
    boxes = torch.tensor([[1.5, 2, 20, 30], [30, 5, 50.25, 38]])[:count]
    return Detections(
        SIZE,
        class_names=("cat", "dog", "cow"),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([0.9, 0.55])[:count],
        pred_classes=torch.tensor([2, 0])[:count],
        **more,
    )


def masks(count: int = 2) -> torch.Tensor:
    result = torch.zeros(count, *SIZE, dtype=torch.bool)
    result[:1, 2:30, 2:20] = True
    result[1:, 5:38, 30:50] = True
    return result


def fields(found: Instances) -> dict[str, list]:
    values = {"size": list(found.image_size), "boxes": found.pred_boxes.tensor.tolist()}
    values |= {name: getattr(found, name).tolist() for name in ("scores", "pred_classes")}
    if found.has("pred_masks"):
        values["masks"] = np.asarray(found.pred_masks).tolist()
    if found.has("track_ids"):
        values["track_ids"] = found.track_ids.tolist()
    return values


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("kind", ["boxes", "run lengths", "tensor", "tracks"])
def test_round_trip(count, kind):
    more = {
        "boxes": {},
        "run lengths": {"pred_masks": RunLengthMasks.encode(masks(count))},
        "tensor": {"pred_masks": masks(count)},
        "tracks": {"track_ids": torch.tensor([7, -1])[:count]},
    }[kind]
    found = detections(count, **more)
    there = to_supervision(found)
    assert len(there) == count
    back = from_supervision(there, SIZE, found.class_names)
    assert fields(back) == fields(found)
    assert back.counts() == found.counts()
    assert back.class_names == found.class_names


def test_fields_of_supervision():
    there = to_supervision(detections(pred_masks=masks(), track_ids=torch.tensor([7, 9])))
    assert there.xyxy.tolist() == [[1.5, 2, 20, 30], [30, 5, 50.25, 38]]
    assert there.confidence.tolist() == pytest.approx([0.9, 0.55])
    assert there.class_id.tolist() == [2, 0]
    assert there.data["class_name"].tolist() == ["cow", "cat"]
    assert there.tracker_id.tolist() == [7, 9]
    assert (there.mask.dtype, there.mask.sum(axis=(1, 2)).tolist()) == (bool, [28 * 18, 33 * 20])


def test_tools_of_supervision_accept_them():
    picture = np.zeros((*SIZE, 3), np.uint8)
    there = to_supervision(detections(pred_masks=masks()))
    drawn = sv.LabelAnnotator().annotate(sv.MaskAnnotator().annotate(picture, there), there)
    assert drawn.any()
    zone = sv.PolygonZone(np.array([[0, 0], [25, 0], [25, 39], [0, 39]]))
    assert zone.trigger(there).tolist() == [True, False]
    kept = from_supervision(there[there.confidence > 0.6], SIZE)
    assert kept.counts() == {"cow": 1}
    assert kept.class_names == ("class 0", "class 1", "cow")
    assert np.asarray(kept.pred_masks).sum() == 28 * 18


def test_other_instances_have_no_names_unless_given():
    found = Instances(SIZE, **detections().get_fields())
    assert to_supervision(found).data == {}
    assert to_supervision(found, ("a", "b", "c")).data["class_name"].tolist() == ["c", "a"]


def test_empty_results_of_supervision():
    assert fields(from_supervision(sv.Detections.empty(), SIZE)) == fields(detections(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": None}, "no confidence. Expected one for each of the 2 objects"),
        ({"class_id": None}, "no class_id"),
        ({"class_id": np.array([0, 5])}, "class ids are 0 to 5. Expected 0 to 2"),
        ({"class_id": np.array([-1, 0])}, "class ids are -1 to 0"),
        ({"mask": np.zeros((2, 60, 40), bool)}, r"masks have shape \(2, 60, 40\)\. Expected .*\(40, 60\)"),
    ],
)
def test_detections_that_cannot_be_converted(change, message):
    there = to_supervision(detections())
    for name, value in change.items():
        setattr(there, name, value)
    with pytest.raises(DataError, match=message):
        from_supervision(there, SIZE, ("cat", "dog", "cow"))


def test_example_of_the_documentation(repo_root, untrained_run, shapes, tmp_path, monkeypatch):
    page = (repo_root / "docs/inference.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "to_supervision" in block)
    (tmp_path / "output").mkdir()
    (tmp_path / "output/mine").symlink_to(untrained_run)
    Image.open(min((shapes / "val").iterdir())).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace("area > 1000", "area > 100"), names)
    assert len(names["again"]) == len(names["large"]) > 0
    assert sum(names["again"].counts().values()) == len(names["large"])
    assert (tmp_path / "large.jpg").exists()


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"needs supervision>=0\.30, .*'pvt_det\[supervision\]'"):
        to_supervision(detections())
