"""Tests of `pvt-det compare` on small synthetic runs."""

import csv
import io
import json

import numpy as np
import pytest

from pvt_det.errors import DataError
from pvt_det.reports.compare import comparison_warnings, difference, verdict
from pvt_det.run_folder import load_run
from tests.command_line import run_command

IMAGES = 40


@pytest.fixture
def make_run(tmp_path):
    """Creates runs with boxes that are off by `noise` pixels, on 40 images with two objects each."""
    generator = np.random.default_rng(0)
    boxes = np.hstack([generator.uniform(0, 60, (2 * IMAGES, 2)), generator.uniform(20, 40, (2 * IMAGES, 2))])
    annotations = tmp_path / "truth.json"
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(IMAGES)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {
                "id": n,
                "image_id": n // 2,
                "category_id": 1,
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
                "iscrowd": 0,
            }
            for n, box in enumerate(boxes)
        ],
    }
    annotations.write_text(json.dumps(truth))

    def make(name, noise, **fields):
        folder = tmp_path / name
        folder.mkdir()
        found = [
            {
                "image_id": n // 2,
                "category_id": 1,
                "bbox": (box + noise * generator.normal(size=4)).tolist(),
                "score": 0.9,
            }
            for n, box in enumerate(boxes)
        ]
        (folder / "detections.json").write_text(json.dumps(found))
        results = {
            "config_file": "configs/retinanet_pvt_tiny.yaml",
            "model": "RetinaNet pvt_tiny",
            "recipe": "adamw lr 0.0001",
            "dataset": "truth",
            "parameters": 23_000_000,
            "metrics": {"bbox": {"AP": 50.0 - noise, "AR100": 60.0}},
            "results_file": "detections.json",
            "annotations": str(annotations),
            "iterations": 10,
            "seed": 1,
        }
        (folder / "results.json").write_text(json.dumps(results | fields))
        return folder

    return make


def test_difference_lies_within_its_interval(make_run):
    exact, noisy = load_run(make_run("exact", 0.0)), load_run(make_run("noisy", 3.0))
    found = difference(noisy, exact, "bbox")
    assert found.lower < found.value < found.upper < 0
    same = difference(exact, exact, "bbox")
    assert (same.value, same.lower, same.upper) == (0, 0, 0)


def test_csv(make_run, capsys, tmp_path):
    folders = [str(make_run("a", 0.0)), str(make_run("b", 3.0, dataset="coco_2017_val"))]
    assert (
        run_command(
            "compare", [*folders, "--format", "csv", "--output", str(tmp_path / "out/table.csv"), "--bootstrap", "50"]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert (tmp_path / "out/table.csv").read_text() == printed.out
    first, second = csv.DictReader(io.StringIO(printed.out))
    assert first["model"] == "RetinaNet pvt_tiny"
    assert first["parameters (M)"] == "23.0"
    assert first["GMACs"] == "-"  # these runs have no config.yaml
    assert (first["box AP published"], first["box AP"]) == ("36.7", "50.00")
    # Published numbers are subtracted on COCO val2017 only.
    assert (first["box AP vs. published"], second["box AP vs. published"]) == ("-", "+10.30 (above, ±0.3)")
    assert first["box AP vs. first [95%]"] == "-"
    assert second["box AP vs. first [95%]"].startswith("-")
    assert "[" in second["box AP vs. first [95%]"]
    assert "data sets differ" in printed.err


def test_segmentation_runs_are_compared_by_miou(make_run, capsys):
    semantic = {"config_file": "configs/semantic_fpn_pvt_tiny.yaml", "annotations": "", "results_file": ""}
    a = make_run("a", 0.0, **semantic, dataset="ade20k_sem_seg_val", metrics={"sem_seg": {"mIoU": 37.0, "pACC": 78.0}})
    b = make_run(
        "b", 0.0, **semantic, dataset="shapes", metrics={"sem_seg": {"mIoU": 80.0}, "panoptic_seg": {"PQ": 61.0}}
    )
    run_command("compare", [str(a), str(b), "--format", "csv"])
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    measured = (first["mIoU published"], first["mIoU"], first["mIoU vs. published"])
    assert measured == ("36.6", "37.00", "+0.40 (above, ±0.3)")
    assert (second["mIoU"], second["mIoU vs. published"], second["PQ"]) == ("80.00", "-", "61.00")
    assert "box AP" not in first


def test_markdown_has_one_row_per_run(make_run, capsys):
    run_command(
        "compare", [str(make_run("a", 0.0)), str(make_run("b", 1.0)), "--format", "markdown", "--bootstrap", "20"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("| --- |")
    assert len({line.count("|") for line in lines}) == 1


def test_table_is_printed(make_run, capsys):
    run_command("compare", [str(make_run("only", 0.0))])
    assert "RetinaNet pvt_tiny" in capsys.readouterr().out


def test_warnings(make_run):
    runs = [load_run(make_run("a", 0.0)), load_run(make_run("b", 0.0, recipe="sgd lr 0.01"))]
    assert comparison_warnings(runs) == ["recipes differ: a: adamw lr 0.0001; b: sgd lr 0.01"]
    assert comparison_warnings([runs[0], runs[0]]) == []


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not valid JSON"), ("[]", "config_file"), ('{"config_file": 3}', "config_file")]
)
def test_broken_results_file(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_run(tmp_path)


def test_missing_run(tmp_path):
    with pytest.raises(DataError, match="absent"):
        load_run(tmp_path / "absent")


def test_broken_detections_file_is_reported(make_run):
    folder = make_run("a", 0.0)
    run = load_run(folder)
    (folder / "detections.json").write_text("[{")
    with pytest.raises(DataError, match=r"detections\.json"):
        difference(run, run, "bbox")


@pytest.mark.parametrize(
    ("measured", "tolerance", "word"),
    [
        (40.1, 0.3, "reproduced"),
        (40.7, 0.3, "reproduced"),
        (40.71, 0.3, "above"),
        (40.0, 0.3, "below"),
        (40, 0.5, "reproduced"),
    ],
)
def test_verdict(measured, tolerance, word):
    assert verdict(measured, 40.4, tolerance) == word
