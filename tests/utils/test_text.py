"""Names in messages."""

from __future__ import annotations

import pytest

from pvt_det.utils.text import listed


@pytest.mark.parametrize(
    ("number", "text"), [(0, ""), (1, "a"), (5, "a, b, c, d, e"), (7, "a, b, c, d, e, … (7 in all)")]
)
def test_a_row_of_names_tells_of_those_left_out_only_where_there_are_some(number, text):
    assert listed(list("abcdefg")[:number]) == text
