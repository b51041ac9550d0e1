"""Which value of label maps is void, and which ones are classes."""

from __future__ import annotations

import numpy as np
import pytest

from pvt_det.data.coco.findings import Findings
from pvt_det.inspection.semantic.values import check_scheme, find_scheme, value_list


def counts(*values: int) -> np.ndarray:
    return np.bincount(values, minlength=256)


def named(number: int, first: int = 0) -> dict[int, str]:
    return {value: f"name {value}" for value in range(first, first + number)}


def scheme(values, names=None, ignore_value=None, palette=None):
    return find_scheme(counts(*values), names, ignore_value, palette)


@pytest.mark.parametrize(
    ("values", "names", "void", "classes"),
    [
        (range(12), named(11), 11, 11),  # a label 11 beside 11 names
        ([0, 3, 5, 150], named(150, first=1), 0, 150),  # ADE20K: 0 beside the names of 1 to 150
        ([*range(19), 255], named(19), 255, 19),
        ([0, 1, 2, 12, 255], named(3), 255, 3),  # 12 is left to the check of the files
        (range(3), named(3), 255, 3),
        ([*range(5), 255], None, 255, 5),
        ([*range(5), 254], None, 254, 5),
        ([*range(11), 99], None, 99, 11),
        ([0, 1, 2, 5], None, 255, 6),  # 5 is too near to be an outlier: 3 and 4 may be rare classes
        (range(12), None, 255, 12),
    ],
)
def test_void_and_number_of_classes(values, names, void, classes):
    found = scheme(values, names)
    assert found.ignore_value == void
    assert len(found.classes) == classes
    assert void not in found.classes


def test_names_are_complete_and_unique():
    assert scheme([0, 1, 3], named(3, first=1)).class_names == ("void", "name 1", "name 2", "name 3")
    assert scheme(range(3), {0: "void", 1: "car", 2: "road"}, ignore_value=1).class_names == ("void", "void 1", "road")
    assert scheme([0, 1, 2]).class_names == ("class 0", "class 1", "class 2")


def test_given_value_is_void():
    found = scheme(range(12), None, 11)
    assert (found.ignore_value, len(found.class_names)) == (11, 11)
    assert "--ignore-value" in found.reason


def test_palette_shows_void():
    colors = np.array([[128, 128, 128], [128, 0, 0], [0, 0, 128]], np.uint8)
    assert scheme(range(4), palette=np.concatenate([colors, [[0, 0, 0]]]).astype(np.uint8)).ignore_value == 3
    assert scheme(range(4), palette=colors).ignore_value == 3  # entries that are left out are black
    assert scheme(range(4), palette=np.concatenate([colors, [[0, 128, 0]]]).astype(np.uint8)).ignore_value == 255
    pascal = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 0]], np.uint8)
    assert scheme(range(4), palette=pascal).ignore_value == 255  # black is the background


def advice(values, names=None, ignore_value=None) -> tuple[list[str], dict[str, str]]:
    findings = Findings()
    found = scheme(values, names, ignore_value)
    items = check_scheme(found, counts(*values), findings, has_names=names is not None)
    return [item.text for item in items], {kind: problem.first[0] for kind, problem in findings.problems.items()}


def test_highest_value_without_names_is_suggested_as_void():
    (text,), problems = advice(range(12))
    assert "if 11, the highest, marks pixels without a class, add --ignore-value 11" in text
    assert "MODEL.SEM_SEG_HEAD.IGNORE_VALUE 11" in text
    assert not problems
    (text,), _ = advice([*range(11), 255])
    assert "'class 0' to 'class 10'" in text
    assert "--ignore-value" not in text
    assert advice(range(12), named(11)) == ([], {})


def test_masks_and_gray_levels_are_refused():
    texts, problems = advice([0, 255])
    assert not texts
    ((kind, offender),) = problems.items()
    assert "look like masks" in kind
    assert "write class numbers, 0 for 0 and 1 for 255" in offender
    _, problems = advice([0, 85, 170, 255])
    assert "look like gray levels" in next(iter(problems))
    assert advice([0, 85, 170, 255], {0: "a", 85: "b", 170: "c"}) == ([], {})
    _, problems = advice([7])
    assert next(iter(problems)) == "label maps with a single value"


def test_ranges_of_values():
    assert value_list([0, 1, 2, 5, 254, 255]) == "0 to 2, 5, 254 to 255"
