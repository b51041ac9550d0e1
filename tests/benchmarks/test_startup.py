"""The startup suite: both sides start on a generated set, and further processes and workers take little memory."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import startup
from benchmarks.__main__ import main
from benchmarks.coco_set import generate
from pvt_det.data.coco import cache, image_files
from pvt_det.data.coco.check import check_dataset


@pytest.mark.usefixtures("in_this_process")
def test_startup_suite(tmp_path, monkeypatch, capsys):
    # Even a small set goes through the cache folder.
    monkeypatch.setattr(cache, "_LARGE", 0)
    monkeypatch.setattr(image_files, "_MANY", 0)
    monkeypatch.setenv("PVT_DET_CACHE", "")
    args = ["startup", "--images", "40", "--folder", str(tmp_path / "set"), "--repeats", "1"]
    assert main([*args, "--json", str(tmp_path / "found.json")]) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["implementation"] for row in rows] == [startup.DETECTRON2, startup.FIRST, startup.LATER]
    assert all(row["implementation"].split(",")[0] in shown for row in rows)
    assert {(row["images"], row["objects"]) for row in rows} == {(40, 291)}
    assert rows[0]["ratio"] == 1
    assert rows[1]["ratio"] > 0
    if sys.platform == "linux":
        assert all(row["worker_mib"] < 20 for row in (rows[0], rows[2]))


def test_generated_set_is_valid_and_as_dense_as_coco(tmp_path):
    data = generate(tmp_path, 60)
    report = check_dataset(data.json_file, data.image_root, masks=True)
    assert (report.images, report.annotations, len(report.class_names)) == (60, 436, 80)
    assert report.problems == {}
    # 3.4 kB per image, as in COCO train2017.
    assert 3000 < data.json_file.stat().st_size / 60 < 4000
    written = data.json_file.stat().st_mtime_ns
    assert generate(tmp_path, 60) == data
    assert data.json_file.stat().st_mtime_ns == written
