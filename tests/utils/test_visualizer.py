"""Pictures show what is there, where it is, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from hotcoco import mask as mask_util
from PIL import Image

from pvt_det.utils import visualizer as pictures
from pvt_det.utils.visualizer import beside_truth, class_colours, draw, draw_labels, save_pictures, sheet

NAME = "pictures_test"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[list[dict]]:
    """Three black images of 64×48 with one box each, registered."""
    result = []
    for number in (5, 6, 7):
        file = tmp_path / f"image{number}.png"
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(file)
        box = {"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
        result.append({"file_name": str(file), "image_id": number, "height": 48, "width": 64, "annotations": [box]})
    DatasetCatalog.register(NAME, lambda: result)
    MetadataCatalog.get(NAME).set(thing_classes=["cat", "dog"], thing_dataset_id_to_contiguous_id={3: 0, 9: 1})
    yield result
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def halves(picture: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Both halves without their captions."""
    return picture[18:, :width], picture[18:, width + 4 :]


def test_boxes_stand_where_they_are(records: list[dict]) -> None:
    detection = {"image_id": 5, "category_id": 9, "bbox": [40, 10, 15, 20], "score": 0.9}
    truth, found = halves(
        beside_truth(read(records[0]["file_name"]), records[0], [detection], MetadataCatalog.get(NAME), width=640), 640
    )
    assert truth.shape == found.shape == (480, 640, 3)
    for half, left, right in ((truth, 100, 300), (found, 400, 550)):
        assert half[200, [left, right]].max(axis=1).min() > 40  # the box's sides
        assert half[105:295, : left - 10].max() == 0
        assert half[105:295, right + 10 :].max() == 0


def test_nothing_found_leaves_the_image_as_it_is(records: list[dict]) -> None:
    _, found = halves(
        beside_truth(read(records[0]["file_name"]), records[0], [], MetadataCatalog.get(NAME), width=64), 64
    )
    assert found.max() == 0


def test_low_scores_are_left_out_and_files_are_named_after_images(records: list[dict], tmp_path: Path) -> None:
    box = {"category_id": 3, "bbox": [10, 10, 20, 20]}
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 5, "score": 0.49, **box}, {"image_id": 7, "score": 0.51, **box}]))
    files = save_pictures(NAME, results, tmp_path / "pictures", read, count=2, width=64)
    assert [file.name for file in files] == ["image5.png", "image7.png"]
    shown = [halves(np.asarray(Image.open(file)), 64)[1].max() for file in files]
    assert shown[0] == 0
    assert shown[1] > 0


def test_a_sheet_has_rows_on_white() -> None:
    result = sheet([np.zeros((h, w, 3), np.uint8) for h, w in ((4, 6), (2, 6), (3, 5))], columns=2)
    assert result.shape == (4 + 4 + 3, 6 + 4 + 6, 3)
    assert (result[:, 6:10] == 255).all()
    assert (result[2:4, 10:] == 255).all()
    assert (result[8:, :5] == 0).all()


@pytest.mark.parametrize(("height", "width", "drawn"), [(33, 47, 640), (97, 101, 384), (48, 64, 64)])
def test_pictures_are_those_of_detectron2(height: int, width: int, drawn: int) -> None:
    """To the pixel, at whole and broken scales, though without matplotlib's own way to show an image."""
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    ring = np.zeros((height, width), np.uint8)
    ring[5:30, 5:30] = 1
    ring[12:20, 12:20] = 0
    rle = mask_util.encode(np.asfortranarray(ring))
    shown = {"bbox": [5, 5, 30, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "segmentation": rle}
    visualizer = Visualizer(image, scale=drawn / width)
    visualizer.overlay_instances(
        boxes=np.array([[5, 5, 30, 30]]),
        masks=[rle],
        labels=["dog"],
        assigned_colors=[colormap(rgb=True, maximum=1)[1]],
    )
    wanted = visualizer.output.get_image()
    assert np.array_equal(draw(image, [shown], ["cat", "dog"], drawn), wanted)
    labels = np.where(ring, np.uint8(1), np.uint8(255))
    visualizer = Visualizer(image, scale=drawn / width)
    visualizer.draw_binary_mask(ring, class_colours()[1] / 255, text="dog", area_threshold=0)
    wanted = visualizer.output.get_image()
    assert np.abs(draw_labels(image, labels, ["cat", "dog"], drawn).astype(int) - wanted).max() <= 2


def test_label_maps_too_large_to_draw_are_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_MOST_LABELLED", 60 * 40)
    labels = np.zeros((80, 120), np.uint8)
    labels[:, 60:] = 255
    result = draw_labels(np.zeros((80, 120, 3), np.uint8), labels, ["a"], 120)
    assert result.shape == (40, 60, 3)
    assert result[3, 3].tolist() == pytest.approx(class_colours()[0] / 2, abs=2)
    assert result[:, 32:].max() == 0
    assert draw_labels(np.zeros((5, 2, 3), np.uint8), np.zeros((5, 2), np.uint8), ["a"], 64).shape == (160, 64, 3)
