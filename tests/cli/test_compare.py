"""Tests of `pvt-det compare` on small synthetic runs."""

import csv
import io
import json
import re
import shutil

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
    assert second["mIoU vs. first"] == "-"  # on different data
    assert "box AP" not in first


def test_markdown_has_one_row_per_run(make_run, capsys):
    run_command(
        "compare", [str(make_run("a", 0.0)), str(make_run("b", 1.0)), "--format", "markdown", "--bootstrap", "20"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("| --- |")
    assert len({line.count("|") for line in lines}) == 1


def table(make_run, capsys, monkeypatch, width, names, **fields):
    """Print the table of runs at a terminal width and return its lines."""
    monkeypatch.setenv("COLUMNS", str(width))
    folders = [make_run(name, 0.5 * number, **fields) for number, name in enumerate(names)]
    assert run_command("compare", [*folders, "--bootstrap", "10"]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


LONG = "retinanet_pvt_tiny_augmented_seed_{}"
RECIPE = "adamw lr 0.0001, batch 16, 90000 iterations, short side 640-800"
METRICS = {"bbox": {"AP": 36.71, "AP50": 56.9, "AP75": 38.92, "AR100": 60.0}}


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("names", [["a", "b"], [f"run_{n}" for n in range(9)], [LONG.format(n) for n in range(4)]])
def test_table_fits_the_terminal_and_breaks_no_word(make_run, capsys, monkeypatch, width, names):
    fields = {"recipe": RECIPE, "metrics": METRICS, "training_seconds": 3725.4, "peak_memory_gib": 3.14}
    lines = table(make_run, capsys, monkeypatch, width, names, **fields)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    cells = ("RetinaNet", "pvt_tiny", "model_final.pth", "36.71", "56.90", "38.92", "1:02:05", "3.1")
    for word in (*RECIPE.split(), *cells):
        assert words.count(word) == len(names), word
    # An interval is one line, so that it can be read at a glance.
    assert sum(bool(re.search(r"\[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", line)) for line in lines) > 0
    assert "\n".join(lines).count("[+") + "\n".join(lines).count("[-") == len(names) - 1
    # Every name is there, if only below the tables.
    assert set(names) <= set(words)


def test_table_has_a_row_per_metric_and_no_empty_rows(make_run, capsys, monkeypatch):
    lines = table(make_run, capsys, monkeypatch, 80, ["a", "b"], metrics=METRICS)
    rows = {re.split(r"  +", line)[0].strip(): re.split(r"  +", line)[1:] for line in lines}
    assert rows["run"] == ["a", "b"]
    assert rows["box AP"] == ["36.71", "36.71"]
    assert (rows["box AP50"], rows["box AP75"]) == (["56.90", "56.90"], ["38.92", "38.92"])
    for empty in ("GMACs", "training time", "peak memory (GiB)", "box AP published"):
        assert empty not in rows
    assert "box AP vs. first [95%]" in rows


def test_many_runs_are_spread_evenly_over_several_tables(make_run, capsys, monkeypatch):
    names = [f"run_{n}" for n in range(8)]
    lines = table(make_run, capsys, monkeypatch, 80, names)
    headings = [line.split()[1:] for line in lines if line.startswith("run ")]
    assert [name for heading in headings for name in heading] == names
    assert [len(heading) for heading in headings] == [3, 3, 2]


def test_runs_in_folders_of_the_same_name_are_told_apart(make_run, capsys):
    folders = [make_run(name, 0.0) / "evaluation" for name in ("a", "b")]
    for folder in folders:
        shutil.copytree(folder.parent, folder)
    run_command("compare", [*folders, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run"] for row in rows] == ["a/evaluation", "b/evaluation"]


def test_csv_keeps_empty_columns_and_markdown_drops_them(make_run, capsys):
    folder = make_run("a", 0.0, training_seconds=90061, peak_memory_gib=12.96)
    run_command("compare", [folder, "--format", "csv"])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["training time"], row["peak memory (GiB)"], row["GMACs"]) == ("25:01:01", "13.0", "-")
    run_command("compare", [folder, "--format", "markdown"])
    heading = capsys.readouterr().out.splitlines()[0]
    assert "training time" in heading
    assert "GMACs" not in heading


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
