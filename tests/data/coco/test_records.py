"""Records of annotation files: they are made on access, and equal those that Detectron2's loading would pack."""

import json

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st

from pvt_det.data.coco.annotations import read_annotations
from pvt_det.data.coco.cache import forget_annotations
from pvt_det.data.coco.findings import Findings
from pvt_det.data.coco.records import CocoRecords
from pvt_det.data.coco.registration import CocoSource
from pvt_det.data.targets import pack_targets
from tests.data.coco.test_packed import ANNOTATIONS, MIXED, content


def listed(data, unreadable=()):
    """Return the records of checked annotations."""
    classes = {category["id"]: number for number, category in enumerate(data.categories)}
    records = []
    for image in sorted(data.images, key=lambda image: image["id"]):
        found = [a for a in data.annotations if a["image_id"] == image["id"] and min(a["bbox"][2:]) > 0]
        objects = [
            {
                "bbox": a["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "iscrowd": a["iscrowd"],
                "category_id": classes[a["category_id"]],
                **{key: a[key] for key in ("segmentation",) if key in a},
            }
            for a in found
        ]
        size = {"height": image["height"], "width": image["width"]}
        file_name = "root/" + image["file_name"]
        records.append({"file_name": file_name, **size, "image_id": image["id"], "annotations": objects})
    return [record for record in records if record["image_id"] not in unreadable]


def assert_same_targets(actual, expected):
    np.testing.assert_array_equal(actual.boxes, expected.boxes)
    np.testing.assert_array_equal(actual.classes, expected.classes)
    assert (actual.boxes.dtype, actual.classes.dtype) == (np.float64, np.int64)
    assert (actual.masks is None) == (expected.masks is None)
    for mask, other in zip(actual.masks or (), expected.masks or (), strict=True):
        assert type(mask) is type(other)
        if isinstance(mask, dict):
            assert mask == other
            continue
        for polygon, expected_polygon in zip(mask, other, strict=True):
            np.testing.assert_array_equal(polygon, expected_polygon)
            assert polygon.dtype == np.float32


def check(folder, annotations, masks, unreadable=frozenset()):
    file = folder / "records.json"
    file.write_text(json.dumps(content(annotations)))
    forget_annotations(file)
    source = CocoSource(str(file), "root", "skip", unreadable=unreadable)
    expected = listed(read_annotations(file, Findings()), unreadable)
    if not source.open().findings.refused("skip"):
        assert json.dumps(source.records()) == json.dumps(expected)
    records = CocoRecords([source.images()], masks)
    assert len(records) == len(expected)
    for number, record in enumerate(expected):
        objects = record.pop("annotations")
        made = records[number]
        assert_same_targets(made.pop("targets"), pack_targets(objects, masks=masks))
        assert made == record
        single = [a for a in objects if not a["iscrowd"] and ("segmentation" in a or not masks)]
        assert records.has_objects(masks=masks)[number] == bool(single)
    assert records.is_wide.tolist() == [record["width"] > record["height"] for record in expected]


@pytest.mark.parametrize("masks", [True, False])
def test_records_of_all_kinds_of_objects(tmp_path, masks):
    check(tmp_path, MIXED, masks)
    check(tmp_path, MIXED, masks, frozenset([2]))


@settings(max_examples=60, deadline=None)
@given(st.lists(ANNOTATIONS, min_size=1, max_size=6), st.booleans())
def test_records_of_any_annotations(tmp_path_factory, annotations, masks):
    # Otherwise, the data set is refused.
    usable = {"image_id": 4, "category_id": 5, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0}
    check(tmp_path_factory.getbasetemp(), [*annotations, usable], masks)


def test_classes_and_several_files(tmp_path):
    file = tmp_path / "records.json"
    file.write_text(json.dumps(content(MIXED)))
    images = CocoSource(str(file), "root", "skip").images()
    records = CocoRecords([images, images], masks=True)
    assert [record["image_id"] for record in records] == [2, 4, 9, 2, 4, 9]
    assert list(records.classes())[:3] == [[0, 0, 0, 0], [], [1]]
    assert records.class_counts() == [6, 2]
    chosen = records.select(np.array([False, True, False, True, False, True]))
    assert [record["image_id"] for record in chosen] == [4, 2, 9]
    assert chosen.class_counts() == [3, 1]
