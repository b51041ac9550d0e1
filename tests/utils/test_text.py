"""Counts and lists of names in messages."""

from __future__ import annotations

import pytest

from pvt_det.utils.text import counted, listed


@pytest.mark.parametrize(
    ("number", "text"), [(0, ""), (1, "a"), (5, "a, b, c, d, e"), (7, "a, b, c, d, e, … (7 in all)")]
)
def test_listed_shortens_only_long_lists(number, text):
    assert listed(list("abcdefg")[:number]) == text


def test_counted_takes_the_singular_for_one_only():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(number, "class is", "classes are") for number in (1, 1234)] == ["1 class is", "1,234 classes are"]
