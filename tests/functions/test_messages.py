"""Messages for users of Python name arguments, not options."""

from __future__ import annotations

import pytest

from pvt_det.errors import DataError
from pvt_det.functions.messages import in_python, python_messages


@pytest.mark.parametrize(
    ("message", "translated"),
    [
        ("Choose another folder with --output.", "Choose another folder with `output`."),
        ("Resume from them with --resume, or", "Resume from them with `resume=True`, or"),
        ("add --allow-change SEED", 'add allow_change=["SEED"]'),
        ("add --allow-change A.B --allow-change C", 'add allow_change=["A.B", "C"]'),
        ("--allow-change INPUT.X: unknown", 'allow_change=["INPUT.X"]: unknown'),
        ("Add --resume, or leave out --allow-change.", "Add `resume=True`, or leave out `allow_change`."),
        ("swapped. Give --train-json a.json --train-images b/", 'swapped. Give train=("a.json", "b/")'),
        ("use --on-error skip (DATASETS.ON_ERROR skip)", 'use overrides={"DATASETS.ON_ERROR": "skip"}'),
        ("command line: unknown key X", "overrides: unknown key X"),
        (
            "Check it with\n  pvt-det inspect a --write-json c.json\nThen give --val-json c.json",
            "Check it with\n  pvt-det inspect a --write-json c.json\nThen give `val` c.json",
        ),
        ("`pvt-det inspect --task x` lists them; see --output", "`pvt-det inspect --task x` lists them; see `output`"),
        ("with --val-json and --val-images.", "with `val`."),
        ("runs/a--output/x does not exist", "runs/a--output/x does not exist"),
    ],
)
def test_options_become_arguments(message, translated):
    assert in_python(message) == translated


def test_error_keeps_its_class():
    with pytest.raises(DataError, match=r"^give `data`$"), python_messages({"val-json": "data"}):
        raise DataError("give --val-json")
