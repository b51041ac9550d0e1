"""Predictions can be drawn and saved, and work wherever `Instances` and arrays do."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from pvt_det.cli import predict
from pvt_det.errors import ConfigError, DataError
from pvt_det.inference.predictions import Detections, LabelMap
from pvt_det.inference.predictor import Predictor

NAMES = ("cat", "dog")


def found(image=None, classes=(0, 1, 1)) -> Detections:
    boxes = torch.tensor([[10.0 * (k + 1), 10, 10 * (k + 1) + 8, 40] for k in range(len(classes))])
    scores = torch.linspace(0.9, 0.5, len(classes))
    fields = {"pred_boxes": Boxes(boxes), "scores": scores, "pred_classes": torch.tensor(classes, dtype=torch.int64)}
    return Detections((48, 64), class_names=NAMES, image=image, **fields)


def labels(image=None) -> LabelMap:
    values = np.zeros((48, 64), np.uint8)
    values[:, 48:] = 1
    return LabelMap(values, NAMES, image)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(path)
    return path


@pytest.mark.parametrize("make", [found, labels])
def test_drawing_is_the_same_for_files_arrays_and_pillow_images(make, photo):
    pixels = np.asarray(Image.open(photo))
    drawn = make(photo).plot()
    assert drawn.shape == (480, 640, 3)
    assert (drawn != 90).any()
    for image in (str(photo), pixels, Image.open(photo)):
        assert np.array_equal(make(image).plot(), drawn)
    assert make(photo).plot(width=64).shape == (48, 64, 3)


@pytest.mark.parametrize("make", [found, labels])
def test_drawing_is_saved_in_the_format_of_the_name(make, photo, tmp_path):
    prediction = make(photo)
    path = prediction.save(tmp_path / "new/folder/found.png", width=320)
    assert path == tmp_path / "new/folder/found.png"
    assert np.array_equal(np.asarray(Image.open(path)), prediction.plot(320))
    assert Image.open(prediction.save(str(tmp_path / "found.jpg"))).format == "JPEG"
    for name in ("found", "found.xyz"):
        with pytest.raises(ConfigError, match=rf"{name} has no suffix of an image format\. Expected"):
            prediction.save(tmp_path / name)


@pytest.mark.parametrize("make", [found, labels])
def test_missing_and_changed_images_are_named(make, photo):
    with pytest.raises(ConfigError, match="image of these predictions is not known"):
        make().plot()
    prediction = make(photo)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(photo)
    with pytest.raises(DataError, match=r"photo\.png has 30x20 pixels, but the predictions are for 64x48"):
        prediction.plot()
    photo.unlink()
    with pytest.raises(DataError, match=r"photo\.png does not exist"):
        prediction.plot()


def test_detections_are_instances(photo):
    detections = found(photo)
    assert isinstance(detections, Instances)
    assert detections.counts() == {"cat": 1, "dog": 2}
    assert found(photo, ()).counts() == {}
    confident = detections[detections.scores > 0.6]
    for part in (confident, detections[:2], detections.to("cpu")[:2], pickle.loads(pickle.dumps(confident))):
        assert isinstance(part, Detections)
        assert part.class_names == NAMES
        assert part.counts() == {"cat": 1, "dog": 1}
        assert np.array_equal(part.plot(), confident.plot())
    assert len(detections[0]) == 1
    assert len(Instances.cat([detections, confident])) == 5


def test_label_maps_are_arrays(photo):
    prediction = labels(photo)
    assert isinstance(prediction, np.ndarray)
    assert prediction.shares() == {"cat": 0.75, "dog": 0.25}
    is_dog = prediction == 1
    assert type(is_dog) is np.ndarray
    assert is_dog.sum() == 48 * 16
    assert prediction.max() == 1
    assert np.array_equal(np.asarray(Image.fromarray(prediction)), np.asarray(prediction))
    copy = pickle.loads(pickle.dumps(prediction))
    assert copy.class_names == NAMES
    assert np.array_equal(copy.plot(), prediction.plot())
    with pytest.raises(DataError, match="64x48 pixels, but the predictions are for 64x10"):
        prediction[:10].plot()


def test_default_threshold_is_that_of_the_command(untrained_run, shapes):
    file = min((shapes / "val").iterdir())
    (option,) = [action for action in predict.build_parser()._actions if action.dest == "score_threshold"]
    assert "(0.5)" in option.help
    assert Predictor(untrained_run, device="cpu").score_threshold == 0.5
    low = Predictor(untrained_run, device="cpu", score_threshold=None)
    assert low.score_threshold < 0.5
    assert low(file).scores.min() < 0.5
    assert low(file).class_names == low.class_names
    words = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.3"]
    assert Predictor(untrained_run, device="cpu", overrides=words).score_threshold == 0.3
