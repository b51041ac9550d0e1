"""Class names in the text and JSON files that users have."""

from __future__ import annotations

import pytest

from pvt_det.errors import ConfigError
from pvt_det.inspection.semantic.names import read_class_names

CASES = {
    "lines.txt": ("road\n\n# comment\ntraffic light\n", {0: "road", 1: "traffic light"}),
    "numbers.txt": ("1: road\n3: car, parked\n", {1: "road", 3: "car, parked"}),
    "spaces.txt": ("0 road\n1 car\n", {0: "road", 1: "car"}),
    "ade20k.txt": ("Idx\tRatio\tTrain\tName\n1\t0.15\t11664\twall\n2\t0.1\t6046\tbed \n", {1: "wall", 2: "bed"}),
    "camvid.txt": ("64 128 64\tAnimal\n192 0 128\tArchway\n", {0: "Animal", 1: "Archway"}),
    "cvat.txt": ("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:128,0,0::\n", {0: "background", 1: "car"}),
    "list.json": ('["road", "car"]', {0: "road", 1: "car"}),
    "by_value.json": ('{"0": "road", "7": "car"}', {0: "road", 7: "car"}),
    "by_name.json": ('{"road": 0, "car": 7}', {0: "road", 7: "car"}),
    "coco.json": ('{"categories": [{"id": 2, "name": "car"}, {"id": 1, "name": "road"}]}', {1: "road", 2: "car"}),
}


@pytest.mark.parametrize("name", CASES)
def test_formats(name, tmp_path):
    text, expected = CASES[name]
    (tmp_path / name).write_text(text)
    assert read_class_names(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "road\ncar\nroad\n", "name road is given twice"),
        ("a.txt", "1 road\n1 car\n", "value 1 is given twice"),
        ("a.txt", "", "has no names. Expected text with one name per line"),
        ("a.json", '{"300": "road"}', "value 300. Expected 0 to 255"),
        ("a.json", "[", "cannot be read"),
        ("a.json", "3", "a int instead of a list"),
    ],
)
def test_wrong_files_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_class_names(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"names\.txt: does not exist"):
        read_class_names(tmp_path / "names.txt")
