"""Faulty annotations are found before the first step, reported by id, and dropped on request."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_util

from pvt_det.data.coco.check import CheckReport, check_dataset
from pvt_det.data.coco.registration import CocoSource
from pvt_det.data.mapper import PVTDatasetMapper, pack_targets
from pvt_det.evaluation.detections import Detections
from pvt_det.evaluation.ground_truth import GroundTruth
from pvt_det.evaluation.metrics import evaluate_hotcoco, evaluate_pycocotools
from tests.command_line import run_command
from tests.faults.conftest import SIDE, SQUARE, in_child

SKIP_HINT = "DATASETS.ON_ERROR skip"


@pytest.fixture
def refused_or_dropped(refused_set, tiny_set):
    """Check that annotation 12 is refused by its id, and is the only one that "skip" drops."""

    def expect(*parts: str, **values: object) -> None:
        tiny_set.second.update(values)
        refused_set("annotation 12", *parts, SKIP_HINT)
        report = check_dataset(tiny_set.json_file, tiny_set.folder, on_error="skip")
        assert (report.images, report.annotations) == (4, 3)
        records = CocoSource(report.json_file, str(tiny_set.folder), "skip").records()
        assert [len(record["annotations"]) for record in records] == [1, 0, 1, 1]

    return expect


@pytest.mark.parametrize(
    ("box", "parts"),
    [
        ([8, 8, 0, 16], ["only empty boxes", "all 4 annotations"]),
        ([70, 8, 24, 16], ["4 x bbox entirely outside its image", "annotation 11"]),
    ],
    ids=["empty", "outside"],
)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_F18_nothing_to_train_on(refused_set, tiny_set, box, parts, on_error):
    for annotation in tiny_set.content["annotations"]:
        annotation["bbox"] = box
    refused_set(*parts, DATASETS__ON_ERROR=on_error)


def test_F19_negative_width(refused_or_dropped):
    refused_or_dropped("bbox with negative width or height", bbox=[30, 8, -20, 16])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
def test_F20_nonfinite_box(refused_or_dropped, value):
    refused_or_dropped("bbox with NaN, infinity or a value of 1e8 or more", bbox=[8, value, 24, 16])


def test_F22_unknown_category(refused_or_dropped):
    refused_or_dropped("unknown category_id", category_id=7)


def test_F22_missing_bbox(refused_or_dropped, tiny_set):
    del tiny_set.second["bbox"]
    refused_or_dropped("annotation without bbox")


def test_F22_duplicate_annotation_id(refused_set, tiny_set):
    tiny_set.second["id"] = 11
    refused_set("duplicate annotation id: annotation 11; annotation 11", SKIP_HINT)
    assert check_dataset(tiny_set.json_file, tiny_set.folder, on_error="skip").annotations == 2


@pytest.mark.parametrize(
    "name", [" ", "bo\x1b[31mwl", "bo\nwl", "bo\u2028wl", "\u202ebowl", "bo\ud800wl", "x" * 1001, 5, None]
)
def test_F22_unprintable_category_name(refused_set, tiny_set, name):
    tiny_set.content["categories"][0]["name"] = name
    refused_set("category without a printable name of at most 1000 characters: category 3")


def test_F22_any_kind_of_id_is_reported_in_one_line(refused_set, tiny_set):
    tiny_set.second["id"] = "\x1b[31m twelve"
    tiny_set.content["annotations"][2]["id"] = {"a": ["long"] * 1000}
    message = refused_set(r"2 x annotation without an integer id: annotation '\x1b[31m twelve'; annotation number 2")
    assert len(message) < 400


def test_F22_class_name_with_markup_is_not_interpreted(command, tiny_set, tmp_path):
    """Rich would parse it as a closing tag without an opening one, and raise during evaluation."""
    name = "[/red] <script>alert(1)</script>"
    tiny_set.content["categories"][0]["name"] = name
    ending = command(**tiny_set.words(), **tiny_set.words("VAL"), SOLVER__MAX_ITER=1, SOLVER__STEPS=[])
    assert ending.code == 0
    assert name in (tmp_path / "run/log.txt").read_text()
    assert (
        f"AP-{name}"
        in json.loads((tmp_path / "run/results.json").read_text())["checkpoints"]["final"]["metrics"]["bbox"]
    )
    assert run_command("report", [str(tmp_path / "run")]) == 0
    (page,) = (tmp_path / "run").glob("*.html")
    assert "[/red] &lt;script&gt;" in page.read_text()
    assert "<script" not in page.read_text()


def test_F23_duplicate_image_id(refused_set, tiny_set):
    """It is unknown which image a box belongs to, so neither the images nor the boxes are used."""
    tiny_set.content["images"][1]["id"] = 1
    refused_set("duplicate image id: image 1; image 1", SKIP_HINT)
    report = check_dataset(tiny_set.json_file, tiny_set.folder, on_error="skip")
    assert (report.images, report.annotations) == (2, 2)


def test_F23_ids_that_evaluators_would_round(refused_set, tiny_set):
    """In float64, which evaluators use, these ids are equal."""
    for number, image_id in ((0, 2**53 + 1), (1, 2**53 + 2)):
        tiny_set.content["images"][number]["id"] = image_id
        tiny_set.content["annotations"][number]["image_id"] = image_id
    refused_set("2 x image without an integer id from 0 to 2^53", str(2**53 + 1))


@pytest.mark.parametrize("part", ["images", "categories"])
def test_F23_negative_ids_that_evaluators_refuse(refused_set, tiny_set, part):
    tiny_set.content[part][0]["id"] = -1
    refused_set("without an integer id from 0 to 2^53", " -1")


@pytest.mark.parametrize(("key", "repaired"), [("area", 384), ("iscrowd", 0)])
def test_F25_missing_key_is_filled_in_and_reported(tiny_set, refused_set, key, repaired):
    del tiny_set.second[key]
    report = check_dataset(tiny_set.json_file, tiny_set.folder, masks=True)
    assert report.annotations == 4
    assert f"annotation without {'a usable ' if key == 'area' else ''}{key}: annotation 12" in str(report)
    assert CocoSource(report.json_file, str(tiny_set.folder)).load().annotations[1][key] == repaired
    refused_set("annotation 12", "ON_ERROR stop", DATASETS__ON_ERROR="strict")


def test_F25_polygon_of_two_points(tiny_set, refused_set):
    tiny_set.second["segmentation"] = [*SQUARE, [1, 1, 2, 2]]
    report = check_dataset(tiny_set.json_file, tiny_set.folder, masks=True)
    assert "1 x polygon with fewer than three points: annotation 12 (polygon removed)" in str(report)
    assert CocoSource(report.json_file, str(tiny_set.folder)).load().annotations[1]["segmentation"] == SQUARE
    tiny_set.second["segmentation"] = [[1, 1, 2, 2]]
    masks = {"MODEL__MASK_ON": True}
    refused_set("annotation without a usable mask, which MODEL.MASK_ON needs: annotation 12", **masks)


WILD = [math.nan, math.inf, -math.inf, 1e8, -1e9, 9e7, 1e300, 10**400]


def test_F26_wild_polygon_coordinate(refused_or_dropped, tiny_set):
    """Drawing 9e7 alone would need 14 GB. The check needs at most 1 GB to refuse each by its id."""
    files = []
    for number, value in enumerate(WILD):
        tiny_set.second["segmentation"] = [[8, 8, value, 8, 32, 24]]
        files.append(tiny_set.json_file.rename(tiny_set.folder / f"wild{number}.json"))
    reports, _ = in_child(lambda: [_check(path).lines[0] for path in files], address_space=10**9)
    assert len(reports) == len(WILD)
    assert all("annotation 12" in line for line in reports)
    refused_or_dropped("polygon with NaN, infinity or a coordinate of 1e8 or more", segmentation=[[8, 8, 1e8, 8, 9, 9]])


def _check(path: Path) -> CheckReport:
    return check_dataset(path, path.parent, on_error="skip", masks=True)


def test_F26_outline_too_long_to_draw(refused_or_dropped):
    refused_or_dropped("outline is too long to draw", segmentation=[[8, 8, 9e7, 8, 32, 24]])


def test_F26_zigzag_and_tiny_box(refused_or_dropped, tiny_set):
    """An outline of six million pixels inside the image, and a box that training would enlarge 280 times."""
    zigzag = [float(value) for number in range(100_000) for value in (number % 2 * 60, number % 60)]
    refused_or_dropped("outline is too long to draw", segmentation=[zigzag])
    refused_or_dropped("outline is too long to draw", segmentation=[zigzag[:2000]], bbox=[8, 8, 0.01, 16])
    assert check_dataset(tiny_set.json_file, tiny_set.folder, on_error="skip").annotations == 3


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([5, 5], "RLE whose runs do not cover its image"),
        ([SIDE * SIDE + 5, -5], "RLE whose runs do not cover its image"),
        (
            [2**63 - 1, 2**63 - 1, SIDE * SIDE + 2],
            "RLE whose runs do not cover its image",
        ),  # overflows
        ([[SIDE * SIDE]], "RLE whose counts cannot be read"),
        ("garbage~~~", "RLE whose counts cannot be read"),
        ("", "RLE whose counts cannot be read"),
        (None, "RLE whose counts cannot be read"),
    ],
    ids=["short", "negative", "wraps around", "nested", "garbage", "empty", "missing"],
)
def test_F27_corrupt_rle(refused_or_dropped, counts, reason):
    refused_or_dropped(reason, segmentation={"size": [SIDE, SIDE], "counts": counts})


@pytest.mark.parametrize("size", [[SIDE, 2 * SIDE], [float(SIDE), float(SIDE)]], ids=["different", "floating point"])
def test_F27_rle_with_wrong_size(refused_or_dropped, size):
    rle = {"size": size, "counts": [int(size[0] * size[1])]}
    refused_or_dropped("RLE whose size is not its image's [height, width] as integers", segmentation=rle)


def test_F28_rle_and_polygons_both_train(tiny_set, repo_root):
    """Both kinds of masks in one image, with the polygon format configured, give the same pixels."""
    from pvt_det.config import load_config

    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[8:24, 8:32] = 1
    rle = mask_util.encode(mask)
    runs = {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}
    copies = [dict(tiny_set.content["annotations"][0], id=number, segmentation=runs) for number in (1, 2)]
    copies[1]["segmentation"] = {"size": [SIDE, SIDE], "counts": _run_lengths(mask)}
    tiny_set.content["annotations"] += copies
    source = CocoSource(str(tiny_set.json_file), str(tiny_set.folder))
    record = source.records()[0]
    words = ["MODEL.WEIGHTS", "", "INPUT.MASK_FORMAT", "polygon", "INPUT.MIN_SIZE_TRAIN", f"[{SIDE}]"]
    cfg = load_config(repo_root / "configs/mask_rcnn_pvt_tiny.yaml", [*words, "INPUT.RANDOM_FLIP", "none"])
    record["targets"] = pack_targets(record.pop("annotations"), masks=True)
    masks = PVTDatasetMapper(cfg, is_train=True)(record, 0)["instances"].gt_masks.tensor
    assert len(masks) == 3
    for found in masks:
        assert (found.numpy() == mask).all()


def _run_lengths(mask: np.ndarray) -> list[int]:
    flat = mask.flatten(order="F")
    assert not flat[0]
    return np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])).tolist()


@pytest.mark.parametrize("evaluate", [evaluate_hotcoco, evaluate_pycocotools])
def test_F29_annotation_id_0_counts(evaluate):
    box = [10.0, 10.0, 50.0, 50.0]
    truth = GroundTruth(
        [{"id": 0, "width": 160, "height": 160}],
        [{"id": 0, "image_id": 0, "category_id": 0, "bbox": box, "area": 2500.0, "iscrowd": 0}],
        [{"id": 0, "name": "thing"}],
    )
    perfect = Detections(0, np.array([box]), np.array([0.9]), np.array([0]), None, (160, 160))
    assert evaluate(truth, [perfect], "bbox").stats[0] == pytest.approx(1)


@pytest.mark.parametrize("evaluate", [evaluate_hotcoco, evaluate_pycocotools])
def test_F29_unused_keys_of_records_are_ignored(evaluate):
    """hotcoco accepts only certain types for license, date and supercategory."""
    box = [10.0, 10.0, 50.0, 50.0]
    truth = GroundTruth(
        [{"id": 1, "width": 160, "height": 160, "license": "CC BY", "date_captured": 2020, "coco_url": 5}],
        [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 2500.0, "iscrowd": 0}],
        [{"id": 1, "name": "thing", "supercategory": 5, "isthing": "yes", "keypoints": 7}],
    )
    perfect = Detections(1, np.array([box]), np.array([0.9]), np.array([0]), None, (160, 160))
    assert evaluate(truth, [perfect], "bbox").stats[0] == pytest.approx(1)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content["images"].clear(), "no usable image"),
        (lambda content: content["annotations"].clear(), "no usable annotation"),
        (lambda content: [a.update(iscrowd=1) for a in content["annotations"]], "only crowd regions: all 4"),
    ],
    ids=["no images", "no annotations", "all crowd"],
)
def test_F30_empty_set(refused_set, tiny_set, change, reason, on_error):
    change(tiny_set.content)
    refused_set(reason, "set.json", DATASETS__ON_ERROR=on_error)


@pytest.mark.parametrize("fault", ["cut", "mark", "deep", "Latin-1"])
def test_F31_truncated_or_badly_encoded_json(refused, tiny_set, fault):
    path = tiny_set.json_file
    text = path.read_text()
    content, reason = {
        "cut": (text[:-40], "broken or cut short"),
        "mark": ("\ufeff" + text, "byte-order mark"),
        "deep": ("[" * 100_000, "broken or cut short"),
        "Latin-1": (text.replace("bowl", "b\xf6wl"), "broken or not UTF-8"),
    }[fault]
    path.write_bytes(content.encode("latin-1" if fault == "Latin-1" else "utf-8"))
    words = {"DATASETS__TRAIN_JSON": path, "DATASETS__TRAIN_IMAGES": tiny_set.folder}
    refused(3, str(path), reason, **words)


@pytest.mark.parametrize(
    ("text", "twice", "key"),
    [("}]}", '}], "annotations": []}', "annotations"), ('"id": 12,', '"id": 12, "bbox": [0, 0, 9, 9],', "bbox")],
    ids=["whole list", "one value"],
)
def test_F31_key_given_twice(refused, tiny_set, text, twice, key):
    """Python's json keeps the last value, so a file's first annotations would be lost silently."""
    path = tiny_set.json_file
    path.write_text(twice.join(path.read_text().rsplit(text, 1)))
    words = {"DATASETS__TRAIN_JSON": path, "DATASETS__TRAIN_IMAGES": tiny_set.folder}
    refused(3, str(path), f"the key '{key}' appears twice in one object with different values", **words)


def test_F31_key_given_twice_with_one_value(tiny_set):
    path = tiny_set.json_file
    path.write_text(path.read_text().replace('"id": 12,', '"id": 12, "id": 12,'))
    assert check_dataset(path, tiny_set.folder).annotations == 4


def test_F31_json_that_is_not_a_regular_file(refused, tiny_set):
    """Reading a pipe or device would never end, and a file name that is too long is the user's mistake."""
    os.mkfifo(tiny_set.folder / "pipe.json")
    for path, reason in (
        (tiny_set.folder / "pipe.json", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        (tiny_set.folder, "a folder"),
        ("x" * 300, "File name too long"),
    ):
        refused(3, str(path), reason, DATASETS__TRAIN_JSON=path, DATASETS__TRAIN_IMAGES=tiny_set.folder)
    refused(3, "File name too long", DATASETS__TRAIN_JSON=tiny_set.json_file, DATASETS__TRAIN_IMAGES="x" * 300)


def test_F31_json_with_different_content(refused, tiny_set):
    path = tiny_set.json_file
    path.write_text(json.dumps({"images": [], "annotations": {}, "categories": []}))
    refused(3, str(path), "no list 'annotations'", DATASETS__TRAIN_JSON=path, DATASETS__TRAIN_IMAGES=tiny_set.folder)
