"""Check of a data set: every problem of annotations and image files is found, named and counted before training."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util

from pvt_det.config.table import choices
from pvt_det.data.coco.annotations import read_annotations
from pvt_det.data.coco.check import check_dataset
from pvt_det.data.coco.findings import Findings, Problem
from pvt_det.data.coco.registration import CocoSource
from pvt_det.errors import ConfigError, DataError
from pvt_det.structures.rle import rle_problem

W, H = 40, 30


@pytest.fixture
def folder(tmp_path):
    for number in range(1, 4):
        pixels = np.random.default_rng(number).integers(0, 255, (H, W, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg", quality=90)
    return tmp_path


def valid_content():
    """Return a valid data set with three images, and two boxes in each of the first two."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": W, "height": H} for i in range(1, 4)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {
                "id": 10 + n,
                "image_id": 1 + n // 2,
                "category_id": (1, 5)[n % 2],
                "bbox": [2, 3, 10, 8],
                "area": 80,
                "iscrowd": 0,
                "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
            }
            for n in range(4)
        ],
    }


def check(folder, data, **settings):
    file = folder / "set.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    return check_dataset(file, folder, **settings)


def changed(**values):
    """Return the valid data set with keys of annotation 11 changed, or removed if the value is `...`."""
    data = valid_content()
    for key, value in values.items():
        if value is ...:
            del data["annotations"][1][key]
        else:
            data["annotations"][1][key] = value
    return data


def test_valid_data(folder):
    report = check(folder, valid_content(), level="full", masks=True)
    assert (report.images, report.annotations, report.class_names) == (3, 4, ["cat", "dog"])
    assert report.problems == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bbox": [1, 2, 3]}, "not four numbers"),
        ({"bbox": [1, 2, "3", 4]}, "not four numbers"),
        ({"bbox": [W, 2, 3, 4]}, "outside its image"),
        ({"bbox": [-5, 2, 5, 4]}, "outside its image"),
        ({"category_id": "cat"}, "unknown category_id"),
        ({"image_id": 99}, "unknown or dropped image_id"),
        ({"iscrowd": 2}, "iscrowd"),
        ({"ignore": 1}, "ignore"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "x, y pairs"),
        ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "x, y pairs"),
        ({"segmentation": "polygon"}, "neither polygons nor RLE"),
    ],
)
def test_broken_annotation(folder, values, message):
    """By default, the error names the annotation and the fix. With "skip", the annotation is dropped and counted."""
    with pytest.raises(DataError, match=message) as caught:
        check(folder, changed(**values))
    assert "annotation 11" in str(caught.value)
    assert "1 x " in str(caught.value)
    assert "ON_ERROR skip" in str(caught.value)
    report = check(folder, changed(**values), on_error="skip")
    assert (report.images, report.annotations) == (3, 3)
    (problem,) = report.problems.values()
    assert problem.count == 1
    records = CocoSource(report.json_file, str(folder), "skip").records()
    assert [len(record["annotations"]) for record in records] == [1, 2, 0]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"area": math.nan}, "area"),
    ],
)
def test_fixable_annotation(folder, values, kind):
    report = check(folder, changed(**values), masks=True)
    assert report.annotations == 4
    ((name, problem),) = report.problems.items()
    assert kind in name
    assert problem.repair
    assert "annotation 11" in str(report)
    fixed = CocoSource(report.json_file, str(folder)).load().annotations[1]
    assert fixed["area"] == 80
    assert fixed["iscrowd"] == 0
    assert fixed["segmentation"] == [[2, 3, 12, 3, 12, 11, 2, 11]]

    with pytest.raises(DataError, match=rf"refused: 1 x .*{kind}[\s\S]*ON_ERROR stop"):
        check(folder, changed(**values), on_error="strict")


@pytest.mark.parametrize(
    ("problem", "outcomes"),
    [
        (Problem(repair="set to 0"), ("fixed", "fixed", "refused")),
        (Problem(), ("refused", "dropped", "refused")),
        (Problem(fatal=True), ("refused", "refused", "refused")),
    ],
)
def test_every_problem_has_one_outcome(problem, outcomes):
    assert tuple(problem.outcome(on_error) for on_error in ("stop", "skip", "strict")) == outcomes


def test_missing_masks_are_a_problem_only_for_mask_models(folder):
    assert check(folder, changed(segmentation=[])).annotations == 4
    assert check(folder, changed(segmentation=[[1, 2, 3, 4]])).annotations == 4
    with pytest.raises(DataError, match=r"MODEL\.MASK_ON"):
        check(folder, changed(segmentation=[]), masks=True)


def test_missing_area_is_computed_from_the_mask(folder):
    data = changed(area=...)
    data["annotations"][1]["segmentation"] = [[2, 3, 12, 3, 2, 11]]
    check(folder, data)
    assert CocoSource(str(folder / "set.json"), str(folder)).load().annotations[1]["area"] == 40
    triangle = np.zeros((H, W), np.uint8, order="F")
    triangle[3:5, 2:9] = 1
    rle = mask_util.encode(triangle)
    data["annotations"][1]["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    check(folder, data)
    assert CocoSource(str(folder / "set.json"), str(folder)).load().annotations[1]["area"] == 14


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "broken or cut short"),
        ("[1]", "no list 'images'"),
    ],
)
def test_broken_json_names_the_file(folder, content, message):
    with pytest.raises(DataError, match=message) as caught:
        check(folder, content)
    assert "set.json" in str(caught.value)


def test_missing_files_and_folders(folder):
    with pytest.raises(DataError, match=r"absent\.json"):
        check_dataset(folder / "absent.json", folder)
    check(folder, valid_content())
    with pytest.raises(DataError, match=r"image folder .*absent does not exist"):
        check_dataset(folder / "set.json", folder / "absent")
    with pytest.raises(ConfigError, match="full, fast, off"):
        check_dataset(folder / "set.json", folder, "quick")


@pytest.mark.parametrize("on_error", choices("DATASETS.ON_ERROR"))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["categories"].clear(), "no usable category"),
        (lambda d: d["categories"].append({"id": 1, "name": "cow"}), "duplicate category id: 1"),
        (lambda d: d["categories"].append({"id": 2, "name": "dog"}), "duplicate category name: dog"),
    ],
)
def test_fatal_problems_are_always_refused(folder, on_error, change, message):
    data = valid_content()
    change(data)
    with pytest.raises(DataError, match=message):
        check(folder, data, on_error=on_error)


def test_all_problems_are_in_one_report(folder):
    data = changed(bbox=[1, 2, -3, 4])
    data["annotations"][2]["category_id"] = 8
    data["images"][2]["width"] = 0
    (folder / "1.jpg").unlink()
    with pytest.raises(DataError) as caught:
        check(folder, data)
    for part in ("negative width", "unknown category_id", "not positive integers", "file that is missing"):
        assert part in str(caught.value)


FILE_FAULTS = {
    "size": (lambda p: Image.new("RGB", (H, W)).save(p), "is 30x40"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
}


@pytest.mark.parametrize("level", ["fast", "full"])
@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_broken_image_file(folder, level, fault):
    corrupt, message = FILE_FAULTS[fault]
    corrupt(folder / "1.jpg")
    with pytest.raises(DataError, match=message) as caught:
        check(folder, valid_content(), level=level)
    assert str(folder / "1.jpg") in str(caught.value)
    assert "image 1" in str(caught.value)
    report = check(folder, valid_content(), level=level, on_error="skip")
    assert (report.images, report.annotations, report.unreadable) == (2, 2, {1})
    assert check(folder, valid_content(), level="off").images == 3


def test_data_set_without_readable_images_is_refused(folder):
    for number in range(1, 4):
        (folder / f"{number}.jpg").unlink()
    with pytest.raises(
        DataError,
        match=r"contains none of the images, such as 1\.jpg: 0 of 3 files exist in ",
    ):
        check(folder, valid_content(), on_error="skip")


@pytest.mark.parametrize(
    ("name", "images", "annotations", "masks"),
    [("blood_cells", 292, 3941, False), ("nuclei", 430, None, True), ("coco_mini", 209, None, True)],
)
def test_real_data(shared_dir, name, images, annotations, masks):
    root = shared_dir / "data" / name
    json_file, image_root = root / "annotations/instances_train.json", root / "images"
    if name == "coco_mini":
        json_file, image_root = root / "annotations/instances_train2017.json", root / "train2017"
    report = check_dataset(json_file, image_root, "full", masks=masks)
    assert report.images == images
    assert annotations in (None, report.annotations)
    assert report.problems == {}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_run_lengths(data):
    """Valid masks pass in both formats; a changed character or run is detected or decodes to a different valid mask."""
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    mask = np.random.default_rng(data.draw(st.integers(0, 1000))).random((height, width)) < data.draw(st.floats(0, 1))
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = rle["counts"].decode()
    assert rle_problem({"size": [height, width], "counts": counts}, height, width) == ""
    flat = mask.flatten(order="F")
    runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])).tolist()
    runs = [0, *runs] if flat[0] else runs
    assert rle_problem({"size": [height, width], "counts": runs}, height, width) == ""
    assert rle_problem({"size": [height, width], "counts": [*runs, 1]}, height, width) != ""
    place = data.draw(st.integers(0, len(counts) - 1))
    broken = counts[:place] + data.draw(st.characters(codec="ascii")) + counts[place + 1 :]
    if rle_problem({"size": [height, width], "counts": broken}, height, width) == "":
        decoded = mask_util.decode({"size": [height, width], "counts": broken.encode()})
        again = mask_util.encode(decoded)
        assert mask_util.area(again) == decoded.sum()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_value_is_refused_or_harmless(tmp_path_factory, data):
    """For any value of any key, loading raises DataError or returns complete data."""
    mutated = copy.deepcopy(valid_content())
    table = data.draw(st.sampled_from(["images", "annotations", "categories"]))
    row = data.draw(st.integers(0, len(mutated[table]) - 1))
    key = data.draw(st.sampled_from(sorted(mutated[table][row])))
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
        max_leaves=8,
    )
    mutated[table][row][key] = data.draw(values)
    file = tmp_path_factory.getbasetemp() / "mutated.json"
    file.write_text(json.dumps(mutated))
    for on_error in choices("DATASETS.ON_ERROR"):
        try:
            found = CocoSource(str(file), ".", on_error).load()
        except DataError:
            continue
        for annotation in found.annotations:
            assert np.isfinite(annotation["bbox"]).all()
            assert annotation["iscrowd"] in (0, 1)
            assert annotation["area"] >= 0


def test_only_a_file_name_outside_the_image_folder_is_fatal(tmp_path):
    images = [
        {"id": 1, "file_name": "../a.jpg", "width": 8, "height": 8},
        {"id": 2, "file_name": "outside the image folder.jpg", "width": 0, "height": 8},
        {"id": 3, "file_name": "b.jpg", "width": 8, "height": 8},
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    findings = Findings()
    read_annotations(path, findings)
    found = {problem.first[0]: problem.fatal for problem in findings.problems.values() if "image " in problem.first[0]}
    assert found == {"image 1": True, "image 2": False}
    allowed = Findings()
    read_annotations(path, allowed, allow_outside=True)
    assert not any("outside" in kind for kind in allowed.problems)
