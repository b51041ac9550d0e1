"""Cache of annotation files: each file is parsed once per process, and again when it changes."""

from __future__ import annotations

import json

import pytest

from pvt_det.data.coco import annotations
from pvt_det.data.coco.cache import forget_annotations, load_annotations
from pvt_det.errors import DataError

CONTENT = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 10, "height": 10}],
    "categories": [{"id": 1, "name": "cup"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}],
}


@pytest.fixture
def reads(monkeypatch):
    """Return the list of parsed files, in order."""
    read, files = annotations.read_json, []

    def counted(file):
        files.append(str(file))
        return read(file)

    monkeypatch.setattr(annotations, "read_json", counted)
    return files


def test_unchanged_file_is_parsed_once_and_problems_are_returned_each_time(tmp_path, reads):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(CONTENT))
    (first, problems), (second, again) = load_annotations(file), load_annotations(file)
    assert second is first
    assert reads == [str(file)]
    assert problems.problems.keys() == again.problems.keys() == {"annotation without iscrowd"}
    problems.add("another", "image 1")
    assert "another" not in load_annotations(file)[1].problems


def test_changed_or_removed_file_is_parsed_again(tmp_path, reads):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(CONTENT))
    load_annotations(file)
    file.write_text(json.dumps(CONTENT | {"categories": [{"id": 1, "name": "mug cup"}]}))
    assert load_annotations(file)[0].class_names == ["mug cup"]
    forget_annotations(file)
    load_annotations(file)
    assert len(reads) == 3


def test_missing_file_raises_each_time(tmp_path):
    for _ in range(2):
        with pytest.raises(DataError, match="does not exist"):
            load_annotations(tmp_path / "nowhere.json")


def test_without_drops_images_and_their_annotations(tmp_path):
    file = tmp_path / "train.json"
    more = {"id": 2, "file_name": "2.jpg", "width": 10, "height": 10}
    file.write_text(json.dumps(CONTENT | {"images": [*CONTENT["images"], more]}))
    data, _ = load_annotations(file)
    kept = data.without({1})
    assert ([image["id"] for image in kept.images], kept.annotations, kept.categories) == ([2], [], data.categories)
    assert data.without(frozenset()) is data
