"""Tests of `pvt-det compare` on small synthetic runs."""

import csv
import io
import json

import numpy as np
import pytest

from pvt_det.errors import DataError
from pvt_det.reports.compare import comparison_warnings, difference, same_data, verdict
from pvt_det.reports.published import published_results
from pvt_det.results import find_metrics, load_run
from pvt_det.utils.digest import file_digest
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

    def make(name, noise, *, is_old=False, **fields):
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
            "seed": 1,
        }
        metrics = fields.pop("metrics", {"bbox": {"AP": 50.0 - noise, "AR100": 60.0}})
        if is_old:
            old = {"metrics": metrics, "results_file": "detections.json", "annotations": str(annotations)}
            results |= old | {"iterations": 10, "best": {"metric": "bbox/AP", "value": 51.0, "iteration": 5}}
        else:
            (folder / "truth.json").write_text(annotations.read_text())
            final = {"file": "model_final.pth", "sha256": "1" * 64, "iteration": 10, "metrics": metrics}
            files = {"detections": "detections.json", "ground_truth": "truth.json"}
            results |= {
                "kind": "training",
                "checkpoints": {"final": final},
                "shown": "final",
                "data": [],
                **{key: {"file": file, "sha256": file_digest(folder / file)} for key, file in files.items()},
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


def recipe(config):
    return {"recipe_sha256": next(row.recipe_sha256 for row in published_results() if row.config == config)}


def test_csv(make_run, capsys, tmp_path):
    published = recipe("retinanet_pvt_tiny")
    folders = [str(make_run("a", 0.0, **published)), str(make_run("b", 3.0, dataset="coco_2017_val", **published))]
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
    semantic = recipe("semantic_fpn_pvt_tiny") | {"detections": None, "ground_truth": None}
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
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "detections of pvt-det predict"), ('{"config_file": 3}', "config_file")],
)
def test_broken_results_file(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_run(tmp_path)


def test_missing_run(tmp_path):
    with pytest.raises(DataError, match="absent"):
        load_run(tmp_path / "absent")


def test_broken_detections_file_is_reported(make_run):
    run = load_run(make_run("a", 0.0, detections={"file": "broken.json", "sha256": ""}))
    (run.folder / "broken.json").write_text("[{")
    with pytest.raises(DataError, match=r"broken\.json"):
        difference(run, run, "bbox")


def test_run_of_an_earlier_version_is_read_with_a_warning(make_run, caplog):
    """It recorded no digests, so it is not compared with another run."""
    run, other = load_run(make_run("a", 0.0, is_old=True)), load_run(make_run("b", 1.0, is_old=True))
    assert "does not record its weights, data and config" in caplog.text
    assert (run.value("bbox"), run.checkpoint.iteration) == (50.0, 10)
    best = run.checkpoints["best"]
    assert (best.file, best.iteration, best.metrics) == ("model_best.pth", 5, {"bbox": {"AP": 51.0}})
    assert not same_data(run, other)
    assert difference(run, other, "bbox").value > 0
    assert comparison_warnings([run, other]) == []
    assert find_metrics(run, "") is None


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
