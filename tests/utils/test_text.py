"""Lists of names in messages."""

from __future__ import annotations

import pytest

from pvt_det.utils.text import listed


@pytest.mark.parametrize(
    ("number", "text"), [(0, ""), (1, "a"), (5, "a, b, c, d, e"), (7, "a, b, c, d, e, … (7 in all)")]
)
def test_listed_shortens_only_long_lists(number, text):
    assert listed(list("abcdefg")[:number]) == text
