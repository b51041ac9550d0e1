"""The evaluation suite: both implementations agree on realistic generated detections."""

from __future__ import annotations

import json

import pytest

from benchmarks import evaluation
from benchmarks.__main__ import main


@pytest.mark.usefixtures("in_this_process")
def test_evaluation_suite(tmp_path, capsys):
    args = ["evaluation", "--images", "30", "--repeats", "1", "--json", str(tmp_path / "found.json")]
    assert main(args) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["implementation"] for row in rows] == [evaluation.HOTCOCO, evaluation.PYCOCOTOOLS]
    assert all(row["implementation"] in shown for row in rows)
    assert rows[0]["difference"] < 1e-12
    assert rows[0]["objects"] == 216
    # 32 bytes per detection, plus the interpreter's own growth.
    assert rows[0]["kept_mib"] < 20


def test_generated_detections_are_neither_perfect_nor_random():
    truth = evaluation.generate_truth(40)
    found = list(evaluation.generate_detections(truth))
    assert all(len(image.scores) == 100 for image in found)
    ap = evaluation.evaluate_hotcoco(truth, found, "bbox").stats[0]
    assert 0.1 < ap < 0.9
