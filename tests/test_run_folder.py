"""Commands open unfinished runs, and runs and data that have moved."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from pvt_det import Predictor
from pvt_det.config import load_config
from pvt_det.deployment.api import load_detector
from pvt_det.errors import CheckpointError, ConfigError, DataError, Interrupted
from pvt_det.profiling import find_weights
from pvt_det.results import load_run
from pvt_det.run_folder import evaluation_folder, path_in_run, write_config
from tests.command_line import run_command
from tests.drills.tiny import shapes_keys, tiny_words
from tests.tiny_runs import CONFIG, TINY, stop_in

# An untrained model then has detections to report on.
LOW = {"MODEL.RETINANET.SCORE_THRESH_TEST": 0.0, "SOLVER.STEPS": []}


def train(root: Path, data: Path, output: Path, *options: str, **changes: object) -> None:
    """Train a tiny run, with the data set in a folder."""
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    words = tiny_words(data, output, TINY | LOW | shapes_keys(data, "VAL") | keys)
    run_command("train", ["--config-file", root / CONFIG, *options, *words])


def interrupt(root: Path, data: Path, output: Path, step: int, **changes: object) -> None:
    """Train a tiny run, and stop it in an iteration."""
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, step)
        with pytest.raises(Interrupted):
            train(root, data, output, **changes)


# --- unfinished runs -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def unfinished_run(shapes, repo_root, tmp_path_factory):
    """A run that was stopped after the first of 4 iterations, before any evaluation."""
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    interrupt(repo_root, shapes.parent, folder, 1)
    return folder


@pytest.fixture
def unfinished(unfinished_run, tmp_path):
    return Path(shutil.copytree(unfinished_run, tmp_path / "run"))


@pytest.fixture
def photo(shapes):
    return sorted((shapes / "val").glob("*.*"))[0]


def test_last_checkpoint_of_an_unfinished_run_is_used(unfinished, photo, tmp_path, caplog):
    last = f"{unfinished} is not finished and has no best weights yet. Using its last checkpoint, model_0000000.pth, "
    last += "after iteration 1 of 4."
    run = ["--config-file", unfinished]
    for name, words in {
        "predict": [photo, *run, "--output", tmp_path / "found"],
        "explain": [photo, *run, "--output", tmp_path / "maps.png"],
        "eval": [*run, "DATALOADER.NUM_WORKERS", "0"],
    }.items():
        caplog.clear()
        assert run_command(name, words) == 0, name
        assert caplog.text.count(last) == 1, name
    caplog.clear()
    assert load_detector(unfinished, "", [], "torch").metadata.model == "RetinaNet pvt_v2_b0"
    assert caplog.text.count(last) == 1
    assert Predictor(unfinished, device="cpu").class_names == ("circle", "square", "triangle", "star")
    assert find_weights(str(unfinished)) == str(unfinished / "model_0000000.pth")
    (evaluated,) = load_run(unfinished).checkpoints.values()
    assert (evaluated.file, evaluated.iteration) == ("model_0000000.pth", 1)


def test_damaged_last_checkpoint_of_an_unfinished_run_is_refused(unfinished):
    content = bytearray((unfinished / "model_0000000.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (unfinished / "model_0000000.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model_0000000\.pth is damaged"):
        Predictor(unfinished, device="cpu")


def test_report_and_comparison_of_an_unfinished_run_need_an_evaluation(unfinished, tmp_path, caplog, capsys):
    evaluate = f"pvt-det eval --config-file {unfinished}"
    for name in ("report", "compare"):
        with pytest.raises(DataError, match=rf"{unfinished} is a run that was not evaluated yet\. .*{evaluate}$"):
            run_command(name, [unfinished])
    assert run_command("eval", ["--config-file", unfinished]) == 0
    caplog.clear()
    assert run_command("report", [unfinished]) == 0
    (where,) = (unfinished / "evaluation").iterdir()
    assert f"{unfinished} has no results of its own. Using those in {where}." in caplog.text
    assert "Weights: model_0000000.pth (iteration 1)" in (unfinished / "report.html").read_text()
    capsys.readouterr()
    assert run_command("compare", [unfinished, "--format", "csv"]) == 0
    assert "model_0000000.pth (iteration 1)" in capsys.readouterr().out
    assert run_command("card", [unfinished, "--output", tmp_path / "share"]) == 0
    assert "Of the weights model_0000000.pth (iteration 1), SHA-256" in (tmp_path / "share/README.md").read_text()


def test_evaluations_during_training_are_reported_before_the_run_is_finished(shapes, repo_root, tmp_path, caplog):
    interrupt(repo_root, shapes.parent, tmp_path, 3, TEST__EVAL_PERIOD=2)
    caplog.clear()
    assert run_command("report", [tmp_path]) == 0
    assert f"{tmp_path} is not finished. These are the results of model_0000001.pth (iteration 2)." in caplog.text
    text = (tmp_path / "report.html").read_text()
    assert "Weights: model_0000001.pth (iteration 2)" in text
    assert "Boxes: classes and sizes" in text
    assert "SHA-256 differs" not in text
    run = load_run(tmp_path)
    assert (run.shown, run.checkpoints.keys()) == ("last", {"last", "best"})
    assert run.value("bbox") is not None


def test_report_of_a_run_without_validation_data_says_how_to_evaluate_it(shapes, repo_root, tmp_path, caplog):
    train(repo_root, shapes.parent, tmp_path, SOLVER__MAX_ITER=1, DATASETS__VAL_JSON="", DATASETS__VAL_IMAGES="")
    assert run_command("report", [tmp_path]) == 0
    command = f"pvt-det eval --config-file {tmp_path} --val-json FILE --val-images DIR"
    assert f"{tmp_path} was not evaluated. Evaluate it with {command}" in caplog.text
    assert command in (tmp_path / "report.html").read_text()


# --- runs and data that have moved -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Moved:
    """A finished run that was moved together with its data.

    Attributes:
        run: The run folder.
        data: The folder of the data set.
        before: The folder that both were in when the run was trained. It does not exist anymore.
    """

    run: Path
    data: Path
    before: Path

    @property
    def val(self) -> list[object]:
        """The options that name the validation data."""
        return ["--val-json", self.data / "annotations/instances_val.json", "--val-images", self.data / "val"]

    @property
    def train(self) -> list[object]:
        """The options that name the training data."""
        return ["--train-json", self.data / "annotations/instances_train.json", "--train-images", self.data / "train"]


@pytest.fixture(scope="module")
def moved_run(shapes, repo_root, tmp_path_factory):
    before = tmp_path_factory.mktemp("before")
    shutil.copytree(shapes, before / "data/shapes")
    train(repo_root, before / "data", before / "run", SOLVER__MAX_ITER=2, TEST__EVAL_PERIOD=1)
    assert run_command("eval", ["--config-file", before / "run"]) == 0
    after = tmp_path_factory.mktemp("after")
    shutil.move(before / "run", after / "run")
    shutil.move(before / "data/shapes", after / "shapes")
    shutil.rmtree(before)
    return Moved(after / "run", after / "shapes", before)


@pytest.fixture
def moved(moved_run, tmp_path):
    yield Moved(Path(shutil.copytree(moved_run.run, tmp_path / "moved")), moved_run.data, moved_run.before)
    # No command may write to the folder that the run was trained in.
    assert not moved_run.before.exists()


def test_files_of_a_run_name_no_path_of_its_folder(moved):
    files = [path for path in moved.run.rglob("*") if path.suffix in (".json", ".yaml", ".md")]
    assert {"config.yaml", "results.json", "evaluation.json", "checkpoints.json"} <= {path.name for path in files}
    for path in files:
        assert str(moved.before / "run") not in path.read_text(), path
    assert str(moved.run) == load_config(moved.run / "config.yaml").OUTPUT_DIR
    evaluation = json.loads(next(moved.run.glob("evaluation/*/evaluation.json")).read_text())
    assert evaluation["checkpoints"]["evaluated"]["file"] == "model_best.pth"
    assert evaluation["config_file"] == "config.yaml"


def test_moved_run_is_used_without_its_data(moved, photo, tmp_path, capsys):
    run = ["--config-file", moved.run]
    assert run_command("predict", [photo, *run, "--output", tmp_path / "found"]) == 0
    with pytest.raises(ConfigError, match="Add some with --images"):
        run_command("export", [*run, "--output", tmp_path / "model.pt2"])
    assert run_command("card", [moved.run, "--output", tmp_path / "share"]) == 0
    assert "on instances_val" in (tmp_path / "share/README.md").read_text()
    capsys.readouterr()
    runs = [moved.run, *(moved.run / "evaluation").iterdir()]
    assert run_command("compare", [*runs, "--format", "csv", "--bootstrap", 5]) == 0
    printed = capsys.readouterr()
    assert "[" in printed.out.splitlines()[-1]
    assert "differs" not in printed.err


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_moved_run_is_evaluated_and_resumed_in_its_new_folder(moved, repo_root, version):
    config = moved.run / "config.yaml"
    if version == "earlier":
        config.write_text(config.read_text().replace("OUTPUT_DIR: .\n", f"OUTPUT_DIR: {moved.before / 'run'}\n"))
    assert run_command("eval", ["--config-file", moved.run, *moved.val]) == 0
    options = ["--config-file", config, "--resume", *moved.train, *moved.val]
    assert run_command("train", [*options, "SOLVER.MAX_ITER", "3"]) == 0
    assert load_run(moved.run).checkpoint.iteration == 3
    for path in (moved.run / "evaluation").glob("*/*.*"):
        assert path.suffix not in (".json", ".yaml") or str(moved.run) not in path.read_text(), path


def test_messages_about_moved_data_name_the_options(moved, tmp_path):
    with pytest.raises(DataError, match=r"instances_val\.json, .*/val do not exist.* --val-json and --val-images\.$"):
        run_command("eval", ["--config-file", moved.run])
    with pytest.raises(DataError, match=r"DATASETS\.VAL_IMAGES .*/val does not exist.* with --val-images\.$"):
        run_command("eval", ["--config-file", moved.run, *moved.val[:2]])
    with pytest.raises(DataError, match=r"with --train-json and --train-images and --val-json and --val-images\.$"):
        run_command("train", ["--config-file", moved.run / "config.yaml", "--resume"])


def test_report_finds_images_that_have_moved(moved, caplog):
    assert run_command("report", [moved.run]) == 0
    command = f"pvt-det report {moved.run} --val-images DIR"
    assert command in caplog.text
    text = (moved.run / "report.html").read_text()
    assert command in text
    assert "Boxes: classes and sizes" in text
    assert "missed" not in text.split("Worst images")[-1]
    assert run_command("report", [moved.run, "--val-images", moved.data / "val"]) == 0
    assert "missed" in (moved.run / "report.html").read_text().split("Worst images")[-1]


def test_only_paths_in_the_run_are_shortened(tmp_path, monkeypatch):
    run = tmp_path / "run"
    evaluation = run / "evaluation/val"
    evaluation.mkdir(parents=True)
    for path in (run / "model_best.pth", tmp_path / "other.pth", evaluation / "evaluation.json"):
        path.touch()
    assert path_in_run(run / "model_best.pth", evaluation) == "model_best.pth"
    assert path_in_run(tmp_path / "other.pth", run) == str(tmp_path / "other.pth")
    monkeypatch.chdir(run)
    for name in ("pvt://pvt_small", "", "model_best.pth"):
        assert path_in_run(name, run) == name
    assert path_in_run("model_best.pth", Path("evaluation/val")) == "model_best.pth"


# --- evaluations -----------------------------------------------------------------------------------------------------
def test_evaluations_on_different_data_of_the_same_name_are_kept_apart(tmp_path):
    (tmp_path / "model_final.pth").touch()
    cfg = load_config("retinanet_pvt_tiny", ["OUTPUT_DIR", str(tmp_path)])
    found = []
    for images in ("first", "second", "first", "third"):
        cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES = "val.json", images
        folder = evaluation_folder(cfg, "val")
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, cfg)
        found.append(folder.relative_to(tmp_path).as_posix())
    assert found == ["evaluation/val", "evaluation/val_2", "evaluation/val", "evaluation/val_3"]
    # The same data, named differently.
    cfg.DATASETS.VAL_IMAGES = str(Path("second").absolute())
    assert evaluation_folder(cfg, "val").name == "val_2"


def test_evaluation_without_a_run_is_in_its_output_folder_unless_there_are_several(tmp_path):
    cfg = load_config("retinanet_pvt_tiny", ["OUTPUT_DIR", str(tmp_path)])
    cfg.DATASETS.TEST = ("a",)
    assert evaluation_folder(cfg, "a") == tmp_path
    cfg.DATASETS.TEST = ("a", "b")
    assert evaluation_folder(cfg, "b") == tmp_path / "evaluation/b"
