"""The storage suite: all places give images, and the local server is read like S3."""

from __future__ import annotations

import pytest

from benchmarks.storage import run_storage, storage_table


def test_storage_suite(coco_mini):
    pytest.importorskip("obstore", reason="needs obstore: pip install -e '.[cloud]'")
    rows = list(run_storage(coco_mini, images=4, workers=1, latency=0.001, repeats=1))
    assert len(rows) == 10
    assert all(row.images_per_s > 0 for row in rows)
    assert {row.ratio for row in rows if row.place == "folder"} == {1.0}
    assert storage_table(rows).row_count == 10
