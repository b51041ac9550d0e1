"""Tracked objects keep their number from frame to frame, in the results and in the pictures."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from pvt_det.errors import ConfigError
from pvt_det.inference.predictions import draw_detections
from pvt_det.inference.tracking import Tracker, require_tracking
from pvt_det.utils import visualizer
from tests.command_line import run_command
from tests.inference.test_streams import write_video

SIZE = (64, 96)


def detections(*objects: tuple[float, float]) -> Instances:
    """Return a box for each pair of a left edge and a score."""
    boxes = torch.tensor([[x, 20.0, x + 20, 50] for x, _ in objects]).reshape(-1, 4)
    return Instances(
        SIZE,
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([score for _, score in objects]),
        pred_classes=torch.zeros(len(objects), dtype=torch.int64),
    )


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"needs the package supervision.*pip install --no-deps 'trackers>=2\.6'"):
        require_tracking()


@pytest.fixture
def packages():
    pytest.importorskip("trackers", reason="trackers (make setup) is not installed")


def test_numbers_stay_with_the_objects(packages):
    track = Tracker(25.0, 0.5)
    ids = []
    for number in range(6):
        first, second = (2.0 * number, 0.9), (60 + 2.0 * number, 0.8)
        # The order of the detections changes.
        found = track(detections(*((first, second) if number % 2 else (second, first))), number)
        lefts = found.pred_boxes.tensor[:, 0].tolist()
        ids.append(tuple(dict(zip((x < 40 for x in lefts), found.track_ids.tolist(), strict=True)).values()))
    assert {frozenset(pair) for pair in ids[1:]} == {frozenset({1, 2})}
    assert set(ids[0]) == {-1}
    # The order of each pair alternates with the detections.
    assert len({ids[number][number % 2] for number in range(1, 6)}) == 1


def test_low_scores_continue_a_track_but_do_not_start_one(packages):
    track = Tracker(25.0, 0.5)
    for number in range(2):
        found = track(detections((10, 0.9), (60, 0.3)), number)
        assert found.pred_boxes.tensor[:, 0].tolist() == [10]
    found = track(detections((11, 0.2), (60, 0.3)), 2)
    assert (found.scores.tolist(), found.track_ids.tolist()) == ([pytest.approx(0.2)], [1])
    assert len(track(detections(), 3)) == 0
    assert track(detections((12, 0.9)), 4).track_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("rate", "gap", "kept"), [(25.0, 20, True), (25.0, 30, False), (0.5, 2, True), (0.5, 3, False)]
)
def test_object_may_be_hidden_for_a_second_or_one_frame(packages, rate, gap, kept):
    track = Tracker(rate, 0.5)
    for number in range(2):
        found = track(detections((10, 0.9)), number)
    assert found.track_ids.tolist() == [1]
    assert (track(detections((10, 0.9)), 1 + gap).track_ids.tolist() == [1]) is kept


def test_new_video_starts_at_one(packages):
    for _ in range(2):
        track = Tracker(10.0, 0.5)
        track(detections((10, 0.9)), 0)
        assert track(detections((10, 0.9)), 1).track_ids.tolist() == [1]


def test_picture_shows_the_number(monkeypatch):
    texts = []
    monkeypatch.setattr(visualizer, "add_labels", lambda canvas, labels, *_, **__: texts.extend(labels))
    found = detections((10, 0.9), (60, 0.8))
    found.track_ids = torch.tensor([7, -1])
    draw_detections(np.zeros((*SIZE, 3), np.uint8), found, ["box"])
    assert sorted(texts) == ["box #7 90%", "box 80%"]


def test_command_writes_track_ids(packages, untrained_run, tmp_path):
    video = write_video(tmp_path / "v.avi", 6)
    words = [video, "--config-file", untrained_run, "--device", "cpu", "--quiet", "--score-threshold", "0.9"]
    assert run_command("predict", [*words, "--track", "--stride", "2", "--output", tmp_path / "out"]) == 0
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [image["frame"] for image in images] == [1, 3, 5]
    results = json.loads((tmp_path / "out/detections.json").read_text())
    tracked = [result for result in results if "track_id" in result]
    assert tracked
    assert all(result["track_id"] >= 1 for result in tracked)
    assert all(result["score"] >= 0.9 for result in results if "track_id" not in result)
    by_frame = [[each["track_id"] for each in tracked if each["image_id"] == image["id"]] for image in images]
    assert all(len(ids) == len(set(ids)) for ids in by_frame)


def test_video_options_without_a_video_are_refused(untrained_run, shapes):
    first = min((shapes / "val").iterdir())
    for option in (["--track"], ["--stride", "2"]):
        with pytest.raises(ConfigError, match=rf"{option[0]} is for videos and streams, but the inputs are images"):
            run_command("predict", [first, "--config-file", untrained_run, *option])
    with pytest.raises(ConfigError, match="--stride 0: expected at least 1"):
        run_command("predict", [first, "--config-file", untrained_run, "--stride", "0"])
