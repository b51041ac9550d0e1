"""Packed annotations: they hold the same values as the dictionaries, also in a file that processes share."""

import json
import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvt_det.data.coco.annotations import entry_name, read_annotations
from pvt_det.data.coco.findings import Findings
from pvt_det.data.coco.packed import open_packed, write_packed
from pvt_det.data.coco.packing import read_packed
from pvt_det.utils.arrays import DamagedFileError, write_arrays

RLE = {"size": [30, 40], "counts": "k36h000000000000000000000000000000eb0"}


def annotation(**values):
    return {"image_id": 2, "category_id": 5, "bbox": [1, 2.5, 10, 8.0], "area": 80, "iscrowd": 0, **values}


def content(annotations):
    return {
        "images": [
            {"id": 9, "file_name": "ü/1.jpg", "width": 40, "height": 30, "license": 1},
            {"id": 2, "file_name": "2.jpg", "width": 40, "height": 30, "origin": "2.xml"},
            {"id": 4, "file_name": "\\3.jpg", "width": 40, "height": 30},
        ],
        "categories": [{"id": 8, "name": "dög", "supercategory": "animal"}, {"id": 5, "name": "cat"}],
        "annotations": [{"id": 10 - 3 * n, **a} for n, a in enumerate(annotations)],
    }


def read(folder, annotations):
    file = folder / "set.json"
    file.write_text(json.dumps(content(annotations)))
    findings, packed_findings = Findings(), Findings()
    data, packed = read_annotations(file, findings), read_packed(file, packed_findings)
    assert repr(packed_findings.problems) == repr(findings.problems)
    assert list(packed_findings.problems) == list(findings.problems)
    return data, packed


def described(data):
    """Return the data with only the keys that `CocoData` describes, as text, in which 1 and 1.0 differ."""
    keys = {"id", "file_name", "width", "height", "origin", "image_id", "category_id", "bbox", "area", "iscrowd"}
    keys.add("segmentation")
    known = [[{k: v for k, v in sorted(e.items()) if k in keys} for e in es] for es in (data.images, data.annotations)]
    return json.dumps([*known, data.categories, data.sha256])


MIXED = [
    annotation(segmentation=[[2, 3, 12.5, 3, 12, 11.25]], origin="2.xml, line 3"),
    annotation(image_id=9, segmentation=RLE, category_id=8),
    annotation(segmentation={"size": [30, 40], "counts": [0, 7, 1193]}, iscrowd=1, area=7.0),
    annotation(image_id=9, bbox=[0, 0, 0, 4]),
    annotation(segmentation=[[1.0, 2.0, 3.0, 4.0, 5.0, 7.0], [1, 2, 3, 4, 5, 7, 9, 10]]),
    annotation(segmentation=[[1, 2, 3, 4]], area=None),
    annotation(image_id=77),
]


def test_file_holds_the_same_values_and_problems(tmp_path):
    data, packed = read(tmp_path, MIXED)
    assert len(data.annotations) == len(MIXED) - 1
    write_packed(tmp_path / "packed", packed)
    opened = open_packed(tmp_path / "packed")
    for each in (packed, opened, pickle.loads(pickle.dumps(packed)), pickle.loads(pickle.dumps(opened))):
        assert described(each.unpack()) == described(data)
        assert repr(each.findings.problems) == repr(packed.findings.problems)
        assert list(each.findings.problems) == list(packed.findings.problems)
        assert each.class_names == ["cat", "dög"]
    # A process that is given the object maps the same file.
    assert len(pickle.dumps(opened)) < 300
    kept = replace(data, annotations=[a for a in data.annotations if not a["iscrowd"]])
    assert described(opened.unpack(~opened.arrays["crowds"])) == described(kept)


def test_many_annotations_are_checked_in_parts(tmp_path):
    data, packed = read(tmp_path, MIXED * 700)
    assert len(data.annotations) == 700 * (len(MIXED) - 1)
    assert described(packed.unpack()) == described(data)


def test_names_of_images_and_objects(tmp_path):
    unsafe = [annotation(origin=origin) for origin in ("a.xml\x1b[31m", "a" * 300, "  ")]
    data, packed = read(tmp_path, [*MIXED, *unsafe])
    order = np.argsort(packed.arrays["positions"])
    assert packed.entry_names("object", order) == [entry_name("annotation", a, 0) for a in data.annotations]
    assert packed.entry_names("image", range(3)) == ["image 9", "2.xml", "image 4"]
    assert [packed.file_name(n) for n in range(3)] == packed.file_names == [i["file_name"] for i in data.images]


def test_objects_of_an_image_are_neighbors(tmp_path):
    data, packed = read(tmp_path, MIXED)
    for number, image in enumerate(data.images):
        expected = [a for a in data.annotations if a["image_id"] == image["id"]]
        assert packed.annotations(range(number, number + 1)) == [expected]
        assert [packed.arrays["ids"][n] for n in packed.objects_of(number)] == [a["id"] for a in expected]
        assert (packed.image_of_object[list(packed.objects_of(number))] == number).all()


NUMBERS = st.integers(-50, 50) | st.floats(-50, 50) | st.just(-0.0) | st.booleans() | st.just(math.nan)
MASKS = (
    st.none()
    | st.lists(st.lists(NUMBERS, max_size=9), max_size=3)
    | st.sampled_from(
        [RLE, {"size": [30, 40], "counts": [1200]}, {"size": [30, 40], "counts": [0, 5, 0, 0, 1195]}, "x"]
    )
)
ANNOTATIONS = st.fixed_dictionaries(
    {"image_id": st.sampled_from([9, 2, 4, 5]), "category_id": st.sampled_from([5, 8])},
    optional={
        "bbox": st.lists(st.integers(0, 9) | st.floats(0, 9), min_size=4, max_size=4),
        "iscrowd": st.sampled_from([0, 1, True, 1.0]),
        "area": st.none() | st.integers(0, 99) | st.floats(0, 99),
        "segmentation": MASKS,
        "origin": st.text(max_size=3),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ANNOTATIONS, max_size=6))
def test_any_annotations_come_back(tmp_path_factory, annotations):
    folder = tmp_path_factory.getbasetemp()
    data, packed = read(folder, annotations)
    write_packed(folder / "packed", packed)
    opened = open_packed(folder / "packed")
    for each in data.annotations:
        if not each.get("origin"):
            each.pop("origin", None)
        # Python's parser keeps a bool in a polygon, which is 0 or 1.
        for polygon in each["segmentation"] if isinstance(each.get("segmentation"), list) else ():
            polygon[:] = [int(value) if isinstance(value, bool) else value for value in polygon]
    assert described(opened.unpack()) == described(data)
    assert repr(opened.findings.problems) == repr(packed.findings.problems)


def test_other_formats_are_refused(tmp_path):
    write_arrays(tmp_path / "other", {}, {"format": "pvt_det annotations 99"})
    with pytest.raises(DamagedFileError, match=re.escape("has the format 'pvt_det annotations 99', not")):
        open_packed(tmp_path / "other")
