"""The mapper suite: the training input equals Detectron2's, and the annotations need less memory."""

from __future__ import annotations

import pytest

from benchmarks.mapper import run_mapper


@pytest.mark.usefixtures("in_this_process")
def test_mapper_suite(coco_mini):
    rows = {(row.recipe, row.implementation): row for row in run_mapper(coco_mini, ["paper", "jitter"], 3, 1)}
    for recipe, levels in (("paper", 8), ("jitter", 0.5)):
        row = rows[recipe, "pvt_det"]
        assert max(row.box_difference, row.mask_difference) < 0.01
        assert 0 < row.level_difference < levels
        assert row.images_per_s > 0
    if ("annotations", "pvt_det") in rows:
        assert rows["annotations", "pvt_det"].worker_mib < rows["annotations", "a list"].worker_mib
