"""Results say which weights, data and config they belong to, and no command replaces those of another one."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from pvt_det.engine.trainer import PVTTrainer
from pvt_det.reports.compare import build_evaluator
from pvt_det.reports.published import published_results
from pvt_det.results import load_run
from pvt_det.utils.cli import run_cli
from pvt_det.utils.digest import file_digest
from tests.command_line import run_command

EVALUATED = {"val": True, "SOLVER__MAX_ITER": 2, "SOLVER__STEPS": [], "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0}


@pytest.fixture
def pvt_det(capsys):
    """Run a command, and return its exit code, stdout and stderr."""

    def run(name: str, *words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_cli(lambda: run_command(name, words))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return run


@pytest.fixture
def results():
    """Read the results of a run or an evaluation."""

    def read(folder: Path, name: str = "results.json") -> dict:
        return json.loads((folder / name).read_text())

    return read


@pytest.fixture
def other_data(shapes: Path) -> list[object]:
    """Options that evaluate on the training images."""
    return ["--val-json", shapes / "annotations/instances_train.json", "--val-images", shapes / "train"]


def card_ap(text: str) -> float:
    header = yaml.safe_load(text.split("---\n")[1])
    (measured,) = header["model-index"][0]["results"]
    return next(metric["value"] for metric in measured["metrics"] if metric["type"] == "bbox/AP")


def rows(printed: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(printed)))


def test_F50_card_states_the_metrics_of_the_weights_that_it_ships(command, pvt_det, results, monkeypatch, tmp_path):
    values = [5.0, 1.0]
    monkeypatch.setattr(PVTTrainer, "test", staticmethod(lambda *_: {"bbox": {"AP": values.pop(0)}}))
    assert command(val=True, TEST__EVAL_PERIOD=1, SOLVER__MAX_ITER=2, SOLVER__STEPS=[]).code == 0
    run = tmp_path / "run"
    found = results(run)
    assert found["kind"] == "training"
    best, final = found["checkpoints"]["best"], found["checkpoints"]["final"]
    assert (best["iteration"], best["metrics"]["bbox"]["AP"], best["selected_by"]) == (1, 5.0, "bbox/AP")
    assert (final["iteration"], final["metrics"]["bbox"]["AP"]) == (2, 1.0)
    for checkpoint in (best, final):
        assert checkpoint["sha256"] == file_digest(run / checkpoint["file"])
    assert {(each["role"], each["sha256"]) for each in found["data"]} == {
        (each["role"], file_digest(each["path"])) for each in found["data"]
    }

    assert card_ap((run / "README.md").read_text()) == 5.0
    assert pvt_det("card", run, "--output", tmp_path / "best")[0] == 0
    assert card_ap((tmp_path / "best/README.md").read_text()) == 5.0
    assert pvt_det("card", run, "--output", tmp_path / "final", "--weights", run / "model_final.pth")[0] == 0
    assert card_ap((tmp_path / "final/README.md").read_text()) == 1.0
    # A comparison shows the last checkpoint and says so.
    (row,) = rows(pvt_det("compare", run, "--format", "csv")[1])
    assert (row["box AP"], row["weights"]) == ("1.00", "model_final.pth (iteration 2)")


def test_F50_card_of_replaced_weights_states_no_metrics(command, pvt_det, tmp_path):
    assert command(**EVALUATED).code == 0
    run = tmp_path / "run"
    shutil.copy(run / "model_final.pth", run / "model_best.pth")
    (run / "checkpoints.json").unlink()
    found = json.loads((run / "results.json").read_text())
    found["checkpoints"]["best"]["sha256"] = found["checkpoints"]["final"]["sha256"] = 64 * "0"
    (run / "results.json").write_text(json.dumps(found))
    assert pvt_det("card", run, "--output", tmp_path / "share")[0] == 0
    card = (tmp_path / "share/README.md").read_text()
    assert "model-index" not in card
    assert "Not evaluated.\n\nmodel_best.pth is not the file that results.json describes: its SHA-256 differs." in card
    assert str(tmp_path) not in card


def test_F51_evaluation_keeps_the_results_of_the_run(command, pvt_det, results, other_data, tmp_path):
    assert command(**EVALUATED).code == 0
    run = tmp_path / "run"
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert pvt_det("eval", "--config-file", run, *other_data)[0] == 0
    final = ("--eval-only", "--config-file", run / "config.yaml", "MODEL.WEIGHTS", run / "model_final.pth")
    assert pvt_det("train", *final)[0] == 0
    assert {path: path.read_bytes() for path in kept} == kept

    (evaluated,) = results(run / "evaluation/instances_train", "evaluation.json")["checkpoints"].values()
    assert evaluated["file"] == "model_best.pth"
    assert evaluated["sha256"] == file_digest(run / "model_best.pth")
    again = results(run / "evaluation/instances_val", "evaluation.json")
    assert again["kind"] == "evaluation"
    assert again["checkpoints"]["evaluated"]["metrics"] == results(run)["checkpoints"]["final"]["metrics"]
    assert (run / "evaluation/instances_train/report.html").is_file()
    assert not (run / "report.html").exists()
    # The card still states the metrics of the run's own validation data.
    assert pvt_det("card", run, "--output", tmp_path / "share")[0] == 0
    assert "on instances_val:" in (tmp_path / "share/README.md").read_text()


def test_F51_card_uses_an_evaluation_of_weights_that_training_did_not_evaluate(command, pvt_det, other_data, tmp_path):
    assert command(SOLVER__MAX_ITER=1, SOLVER__STEPS=[]).code == 0
    run = tmp_path / "run"
    assert "Not evaluated." in (run / "README.md").read_text()
    assert pvt_det("eval", "--config-file", run, *other_data)[0] == 0
    assert pvt_det("card", run, "--output", tmp_path / "share")[0] == 0
    assert "on instances_train:" in (tmp_path / "share/README.md").read_text()


def test_F52_runs_on_data_that_changed_between_them_are_not_compared(command, pvt_det, tiny_set, tmp_path):
    settings = EVALUATED | {"val": False} | tiny_set.words() | tiny_set.words("VAL")
    assert command(output=tmp_path / "a", **settings).code == 0
    tiny_set.second["bbox"] = [30, 30, 20, 20]
    changed = settings | tiny_set.words("VAL")
    assert command(output=tmp_path / "b", **changed).code == 0
    code, printed, error = pvt_det("compare", tmp_path / "a", tmp_path / "b", "--format", "csv", "--bootstrap", 10)
    assert code == 0
    assert f"data sets differ: a: {load_run(tmp_path / 'a').dataset} (" in error
    assert rows(printed)[1]["box AP vs. first [95%]"] == "-"


def test_F52_runs_on_the_same_data_are_compared_after_it_has_changed(command, pvt_det, tiny_set, tmp_path):
    settings = EVALUATED | {"val": False} | tiny_set.words() | tiny_set.words("VAL")
    for name in ("a", "b"):
        assert command(output=tmp_path / name, **settings).code == 0
    tiny_set.json_file.unlink()
    compare = ("compare", tmp_path / "a", tmp_path / "b", "--format", "csv", "--bootstrap", 10)
    _, printed, error = pvt_det(*compare)
    assert "differ" not in error
    assert rows(printed)[1]["box AP vs. first [95%]"] == "+0.00 [+0.00, +0.00]"

    # A changed file is named, and nothing is computed from it.
    (truth,) = (tmp_path / "b/inference").glob("*/ground_truth.json")
    content = json.loads(truth.read_text())
    content["annotations"].pop()
    truth.write_text(json.dumps(content))
    (tmp_path / "a/config.yaml").write_text((tmp_path / "a/config.yaml").read_text().replace("SEED: 3", "SEED: 4"))
    _, printed, error = pvt_det(*compare)
    name = load_run(tmp_path / "b").ground_truth.file
    assert f"{tmp_path / 'b'}: {name} is not the file that results.json describes" in error
    assert f"{tmp_path / 'a'}: config.yaml is not the config that results.json describes" in error
    assert rows(printed)[1]["box AP vs. first [95%]"] == "-"
    assert pvt_det("report", tmp_path / "b")[0] == 0
    page = (tmp_path / "b/report.html").read_text()
    assert f"{name} is not the file that results.json describes" in page
    assert "classes and sizes" not in page


def test_F53_published_results_are_those_of_the_recipe_not_of_the_file_name(command, pvt_det, results, tmp_path):
    """The run starts from retinanet_pvt_tiny.yaml, and overrides the backbone and the schedule."""
    assert command(**EVALUATED).code == 0
    (row,) = rows(pvt_det("compare", tmp_path / "run", "--format", "csv")[1])
    assert row["box AP published"] == "-"
    published = next(row for row in published_results() if row.config == "retinanet_pvt_tiny")
    changed = results(tmp_path / "run") | {"recipe_sha256": published.recipe_sha256, "config_file": "mine.yaml"}
    (tmp_path / "run/results.json").write_text(json.dumps(changed))
    (row,) = rows(pvt_det("compare", tmp_path / "run", "--format", "csv")[1])
    assert row["box AP published"] == "36.7"


def test_F54_prediction_does_not_write_into_a_run(command, pvt_det, untrained_run, shapes, tmp_path):
    assert command(SOLVER__MAX_ITER=1, SOLVER__STEPS=[]).code == 0
    run, found = tmp_path / "run", tmp_path / "found"
    before = (run / "results.json").read_bytes()
    predict = ("predict", shapes / "val", "--config-file", untrained_run, "--no-pictures", "--output")
    code, _, error = pvt_det(*predict, run)
    assert code == 2
    assert error.startswith(f"error: {run} is the folder of a training run. ")
    assert (run / "results.json").read_bytes() == before
    assert not (run / "images.json").exists()

    assert pvt_det(*predict, found)[0] == 0
    assert json.loads((found / "images.json").read_text())["info"]["kind"] == "prediction"
    assert {path.name for path in found.iterdir()} == {".lock", "detections.json", "images.json"}
    assert pvt_det(*predict, found)[0] == 0


def test_F54_a_folder_of_another_kind_is_refused_before_any_work(command, pvt_det, untrained_run, shapes, tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "found/detections.json").write_text("[]")
    ending = command(output=tmp_path / "found")
    assert ending.code == 2
    assert f"{tmp_path / 'found'} is the folder of a prediction" in ending.error
    evaluate = ("eval", "--config-file", untrained_run, "--output")
    assert pvt_det(*evaluate, tmp_path / "found")[0] == 2
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["detections.json"]
    assert pvt_det(*evaluate, tmp_path / "evaluated")[0] == 0
    assert command(output=tmp_path / "evaluated").code == 2
    # Detections of an earlier version were in results.json.
    (tmp_path / "found/detections.json").rename(tmp_path / "found/results.json")
    assert command(output=tmp_path / "found").code == 2
    assert pvt_det("card", untrained_run, "--output", tmp_path / "found")[0] == 2
    code, _, error = pvt_det("report", tmp_path / "found")
    assert code == 3
    assert "contains detections of pvt-det predict" in error


def test_F55_report_uses_the_ground_truth_of_the_evaluation(command, pvt_det, results, tiny_set, tmp_path):
    """A broken image and a broken box are left out, a missing area is computed from the mask, not from the box."""
    (tmp_path / "data/4.jpg").write_bytes(b"")
    tiny_set.content["annotations"][2]["bbox"] = [8, 8, -24, 16]
    tiny_set.second["segmentation"] = [[8, 8, 48, 8, 8, 48]]
    tiny_set.second["bbox"] = [8, 8, 40, 40]  # medium, with a small mask
    del tiny_set.second["area"]
    settings = tiny_set.words() | tiny_set.words("VAL") | {"DATASETS__ON_ERROR": "skip"}
    assert command(**EVALUATED | {"val": False} | settings).code == 0
    run = load_run(tmp_path / "run")
    metrics = run.metrics["bbox"]
    evaluator = build_evaluator(run, "bbox")
    evaluator.summary_lines()
    names = [name for name in metrics if "-" not in name]
    shown = {name: 100 * value if value >= 0 else None for name, value in zip(names, evaluator.stats, strict=True)}
    assert shown == {name: metrics[name] for name in names}
    assert metrics["AR100"] > 0

    truth = run.read_ground_truth()
    assert truth.image_ids == {1, 2, 3}
    assert sorted((annotation["image_id"], annotation["area"]) for annotation in truth.annotations) == [
        (1, 384),
        (2, 800),
    ]
    assert "unreadable_images" in (tmp_path / "run" / run.ground_truth.file).read_text()
    # Changing the data afterwards changes neither the page nor the card.
    tiny_set.json_file.write_text("{}")
    assert pvt_det("report", tmp_path / "run")[0] == 0
    objects = (tmp_path / "run/report.html").read_text().split("classes and sizes")[1].split("</table>")[0]
    assert objects.count('<td>bowl</td><td class="number">1</td>') == 1
    assert pvt_det("card", tmp_path / "run", "--output", tmp_path / "share")[0] == 0
    left_out = {"bbox with negative width or height": 1, "unreadable image": 1}
    assert run.data[-1].left_out == left_out
    card = (tmp_path / "share/README.md").read_text()
    counts = ", ".join(f"1 x {kind}" for kind in left_out)
    assert f"set.json, 3 images, 2 objects (left out as broken: {counts})" in card
