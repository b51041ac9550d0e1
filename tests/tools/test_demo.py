"""The demo from end to end on two iterations, its pictures, and its verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from pvt_det.config import load_config
from tools import demo

NAME = "pictures_test"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[list[dict]]:
    """Register a data set of three black 64×48 images with one box each."""
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
    """Return both halves of a drawing without their captions."""
    return picture[18:, :width], picture[18:, width + 4 :]


def test_boxes_are_drawn_at_their_coordinates(records: list[dict]) -> None:
    detection = {"image_id": 5, "category_id": 9, "bbox": [40, 10, 15, 20], "score": 0.9}
    truth, found = halves(
        demo.beside_truth(read(records[0]["file_name"]), records[0], [detection], MetadataCatalog.get(NAME), width=640),
        640,
    )
    assert truth.shape == found.shape == (480, 640, 3)
    for half, left, right in ((truth, 100, 300), (found, 400, 550)):
        assert half[200, [left, right]].max(axis=1).min() > 40  # the box's sides
        assert half[105:295, : left - 10].max() == 0
        assert half[105:295, right + 10 :].max() == 0


def test_image_without_detections_is_unchanged(records: list[dict]) -> None:
    image, metadata = read(records[0]["file_name"]), MetadataCatalog.get(NAME)
    _, found = halves(demo.beside_truth(image, records[0], [], metadata, width=64), 64)
    assert found.max() == 0


def test_low_scores_are_hidden_and_files_are_named_after_images(records: list[dict], tmp_path: Path) -> None:
    box = {"category_id": 3, "bbox": [10, 10, 20, 20]}
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 5, "score": 0.49, **box}, {"image_id": 7, "score": 0.51, **box}]))
    files = demo.save_pictures(NAME, results, tmp_path / "pictures", count=2, width=64)
    assert [file.name for file in files] == ["image5.png", "image7.png"]
    shown = [halves(np.asarray(Image.open(file)), 64)[1].max() for file in files]
    assert shown[0] == 0
    assert shown[1] > 0


SHORT = ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.IMS_PER_BATCH", "2", "MODEL.DEVICE", "cpu"]
# Most of the time is the evaluation of 30 photographs.
SMALL = ["INPUT.MIN_SIZE_TRAIN", "[96]", "INPUT.MIN_SIZE_TEST", "96", "MODEL.RETINANET.NUM_CONVS", "1"]


def test_demo_of_two_iterations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert demo.main(["--output", str(output), *SHORT, *SMALL, "DATALOADER.NUM_WORKERS", "0"]) == 0
    printed = capsys.readouterr().out
    assert "AP50" in printed
    assert "2 of 350 iterations are too few to judge" in printed
    assert "broken" not in printed
    results = json.loads((output / "results.json").read_text())
    assert results["checkpoints"]["final"]["iteration"] == 2
    assert results["checkpoints"]["final"]["metrics"]["bbox"]["AP"] < 25
    assert "<html" in (output / "report.html").read_text(encoding="utf-8")

    pictures = sorted((output / "pictures").iterdir())
    assert len(pictures) == 12
    assert pictures[0].stem == "BloodImage_00007"
    with Image.open(pictures[0]) as picture, Image.open(output / "pictures.jpg") as overview:
        assert picture.size == (2 * 400 + 4, 300 + 18)
        assert overview.size == (2 * picture.width + 4, 3 * picture.height + 2 * 4)
        # The left half shows the ground truth, so it differs from the photograph.
        shown = np.asarray(picture.convert("RGB").crop((0, 18, 400, 318)))
    plain = np.asarray(Image.open(demo.DATA / "images/BloodImage_00007.jpg"))
    assert np.abs(shown.astype(int) - plain).max() > 60


def test_short_example_in_the_help_is_a_valid_config() -> None:
    parser = demo.build_parser()
    (words,) = [line.split()[2:] for line in (parser.epilog or "").splitlines() if "MAX_ITER" in line]
    assert load_config(demo.CONFIG, parser.parse_words(words).overrides).SOLVER.MAX_ITER == 20


def test_photographs_match_their_annotations() -> None:
    sets = [json.loads((demo.DATA / f"annotations/instances_{name}.json").read_text()) for name in ("train", "val")]
    assert [len(data["images"]) for data in sets] == [90, 30]
    names = [image["file_name"] for data in sets for image in data["images"]]
    assert sorted(names) == sorted(path.name for path in (demo.DATA / "images").iterdir())
    assert "MIT License" in (demo.DATA / "LICENSE").read_text()


@pytest.mark.parametrize(
    ("ap", "iterations", "code", "words"),
    [
        (38.0, 350, 0, "as expected"),
        (37.9, 350, 0, "below the 0.38"),
        (24.9, 350, 1, "Something is broken"),
        (24.9, 349, 0, "349 of 350 iterations are too few to judge"),
    ],
)
def test_verdict(capsys: pytest.CaptureFixture[str], ap: float, iterations: int, code: int, words: str) -> None:
    assert demo.verdict(ap, iterations) == code
    assert words in capsys.readouterr().out
