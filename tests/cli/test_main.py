"""Tests of the `pvt-det` program: command names, help, typing errors, completion, and `pvt-det eval`."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pvt_det import api
from pvt_det.cli import completion, eval
from pvt_det.cli import main as command_line
from pvt_det.cli import start as start_module
from pvt_det.cli.start import load, start
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.utils import console
from pvt_det.utils.cli import run_cli


@pytest.fixture
def pvt_det(monkeypatch):
    """Run `pvt-det WORDS`; returns the exit code."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["pvt-det", *words])
        try:
            return command_line.main()
        except SystemExit as stop:
            return stop.code

    return call


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_help_shows_examples_with_the_command_name(name, pvt_det, capsys):
    assert pvt_det(name, "--help") == 0
    text = capsys.readouterr().out
    examples = text[text.lower().index("example") :]
    assert re.search(rf"^ +(\w+: +)?pvt-det {name}\b|torchrun .*pvt-det {name}", examples, re.MULTILINE)
    assert "%(prog)s" not in text


def test_every_module_is_listed_as_a_command(repo_root):
    modules = {path.stem for path in (repo_root / "pvt_det/cli").glob("*.py")} - {
        "__init__",
        "start",
        "main",
        "machine",
        "prediction",
        "prediction_parts",
    }
    assert modules == {name.replace("-", "_") for name in command_line.COMMANDS}


def test_command_list_imports_no_heavy_library():
    code = "import sys, pvt_det.cli.main; sys.argv = ['pvt-det', '--help']\n"
    code += "try: pvt_det.cli.main.main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "detect objects in images" in shown
    assert not {"torch", "detectron2"} & set(shown.splitlines()[-1].split())


def test_help_and_typing_errors_import_no_heavy_library():
    code = (
        "import sys\n"
        "from pvt_det.cli.main import COMMANDS\n"
        "from pvt_det.cli.start import load, start\n"
        "from pvt_det.errors import ConfigError\n"
        "for name in COMMANDS:\n"
        "    load(name).build_parser().format_help()\n"
        "    try: start(name, ['--confg-file', 'x'], name)\n"
        "    except ConfigError as error: print(error)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *errors, modules = done.stdout.splitlines()
    assert len(errors) == len(command_line.COMMANDS)
    assert not {"torch", "detectron2", "numpy", "cv2", "rich"} & set(modules.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'. Did you mean train?"),
        (["xyzzy"], "unknown command 'xyzzy'. See pvt-det --help"),
        (["doctor", "--outptu", "x"], "pvt-det doctor: unrecognized arguments: --outptu x. Did you mean --output?"),
        (["predict", "a.jpg"], "the following arguments are required: --config-file. See pvt-det predict --help."),
        (
            ["train", "--confg-file", "a"],
            "unrecognized arguments: --confg-file. Did you mean --config-file? See pvt-det train",
        ),
        (["export", "--clasifier", "a", "--output", "b"], "arguments: --clasifier. Did you mean --classifier?"),
        (["-x"], "pvt-det: unrecognized arguments: -x. See pvt-det --help."),
    ],
)
def test_typing_errors_are_reported_in_one_line(pvt_det, capsys, words, message):
    assert pvt_det(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "predict {photo} --config-file {leaf} --overlap 0.3",
            "--overlap has no effect without --tile PIXELS",
        ),
        (
            "predict {photo} --config-file {leaf} --weights a --set MODEL.WEIGHTS b",
            "given twice: a and MODEL.WEIGHTS b",
        ),
        ("eval --config-file {leaf} --weights a MODEL.WEIGHTS b", "given twice: a and MODEL.WEIGHTS b. Leave one out"),
        ("eval --config-file x --train-json b", "unrecognized arguments: --train-json. Did you mean --val-json?"),
        ("export --config-file x --side 64 --output a.pt2", "--side is for --classifier"),
        ("export --output a.pt2", "Expected one model to export, found none. Give a run folder, or --classifier NAME"),
        ("export x --config-file y --output a.pt2", "Expected one model to export, found x and y"),
        ("export x --side 64 --output a.pt2", "--side is for --classifier"),
        ("export --classifier x --set A B --output a.pt2", "--set is for --config-file"),
        ("export --classifier x --side 0 --output a.pt2", "--side 0: expected 32 pixels or more"),
        ("export --config-file x --images {video} --output a.pt2", "a.mp4: the check needs image files. Leave every"),
        (
            "inspect a.json a --model pvt_small --batch 2",
            "--model, --batch has no effect without --write-config FILE",
        ),
        ("compare a --bootstrap 0", "--bootstrap 0: expected 1 or more"),
        ("compare a --tolerance nan", "--tolerance nan: expected 0 points or more"),
        ("train-cls --data a", "The model is missing. Add --model NAME with one of pvt_tiny, pvt_small"),
        ("train-cls --model pvt_tiny --eval-only --weights a --resume", "--resume is for training only. Remove it"),
        ("train --config-file {leaf} --dist-url tcp://a:1", "--dist-url needs several processes. Leave it out"),
        ("train --config-file {leaf} --allow-partial x MODEL.WEIGHTS {none}", "--allow-partial needs MODEL.WEIGHTS"),
        ("train --config-file {leaf} --val-images a", "VAL_IMAGES is a, but neither VAL_JSON nor VAL_LABELS is given"),
    ],
)
def test_options_without_effect_are_refused(pvt_det, capsys, repo_root, tmp_path, words, message):
    for name in ("a.png", "a.mp4"):
        (tmp_path / name).touch()
    places = {
        "{leaf}": str(repo_root / "configs/retinanet_pvt_tiny.yaml"),
        "{photo}": str(tmp_path / "a.png"),
        "{video}": str(tmp_path / "a.mp4"),
        "{none}": "",
    }
    given = [places.get(word, word) for word in words.split()]
    assert pvt_det(*given, *(["--output", str(tmp_path / "out")] if given[0] == "train" else [])) == 2
    assert message in capsys.readouterr().err


def test_command_list_is_shown_without_a_command(pvt_det, capsys):
    assert pvt_det() == 2
    assert "train-cls" in capsys.readouterr().out
    assert pvt_det("help") == 0
    assert "train-cls" in capsys.readouterr().out


def test_completion_includes_commands_and_options(capsys, tmp_path):
    assert completion.run(completion.build_parser().parse_args(["bash"])) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in (*command_line.COMMANDS, "--score-threshold", "--allow-partial"))
    (tmp_path / "script").write_text(script)
    (tmp_path / "photo.jpg").touch()
    complete = "COMP_WORDS=(pvt-det predict --weights ph); COMP_CWORD=3; _shtab_pvt_det; echo ${COMPREPLY[@]}"
    command = ["bash", "-c", f". ./script; {complete}"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout == "photo.jpg\n"


@pytest.fixture
def run_folder(repo_root, tmp_path):
    """A run folder with a config and empty checkpoints."""
    (tmp_path / "config.yaml").write_text(f"_BASE_: {repo_root}/configs/retinanet_pvt_tiny.yaml\nOUTPUT_DIR: out\n")
    (tmp_path / "model_best.pth").touch()
    (tmp_path / "model_final.pth").touch()
    return tmp_path


def test_eval_uses_the_best_checkpoint_of_a_run(run_folder, monkeypatch):
    seen = []
    monkeypatch.setattr("pvt_det.engine.defaults.launch_from_args", lambda job, cfg, args: seen.append((cfg, job)))
    for extra in ([], ["--weights", str(run_folder / "model_final.pth"), "--output", "o", "TEST.AUG.ENABLED", "True"]):
        assert start("eval", ["--config-file", str(run_folder), "--val-json", "v.json", *extra], "pvt-det eval") == 0
    (first, job), (second, _) = seen
    assert job.func is api.evaluate
    assert not job.keywords.get("resume")
    assert job.keywords["config_file"] == str(run_folder / "config.yaml")
    assert (str(run_folder / "model_best.pth"), "v.json") == (first.MODEL.WEIGHTS, first.DATASETS.VAL_JSON)
    assert (str(run_folder / "model_final.pth"), True) == (second.MODEL.WEIGHTS, second.TEST.AUG.ENABLED)
    # The current run folder, even if its config has a different OUTPUT_DIR.
    assert [str(run_folder), "o"] == [first.OUTPUT_DIR, second.OUTPUT_DIR]
    assert (job.keywords["page"], job.keywords["against"]) == (True, None)


def test_eval_loads_the_run_to_compare_with_first(run_folder):
    with pytest.raises(DataError, match="nothing"):
        start("eval", ["--config-file", str(run_folder), "--against", str(run_folder / "nothing")], "pvt-det eval")


def test_eval_reports_missing_files(run_folder):
    for name in ("model_best.pth", "model_final.pth"):
        (run_folder / name).unlink()
    args = eval.build_parser().parse_args(["--config-file", str(run_folder)])
    with pytest.raises(CheckpointError, match="Name the weights to use"):
        eval.run(args)
    args.config_file = str(run_folder / "nowhere")
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        eval.run(args)


def test_resume_command_is_passed_to_the_command(monkeypatch, capsys):
    class Fake:
        @staticmethod
        def build_parser():
            return completion.build_parser()

        @staticmethod
        def run(args):
            print(args.resume_command)
            return 7

    monkeypatch.setattr("pvt_det.cli.start.load", lambda name: Fake)
    assert run_cli(lambda: start("x", ["bash"], "pvt-det x")) == 7
    assert capsys.readouterr().out == "pvt-det x --resume bash\n"
    # From the program itself.
    monkeypatch.setattr(sys, "argv", ["pvt-det", "completion", "bash"])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "pvt_det.cli.main", "completion", "bash"])
    assert command_line.main() == 7
    assert capsys.readouterr().out == "python3 -m pvt_det.cli.main completion --resume bash\n"


def test_commands_are_modules():
    assert load("train-cls").__name__ == "pvt_det.cli.train_cls"
    assert Path(load("train").__file__).name == "train.py"


def test_slow_imports_are_announced_on_a_terminal_only(monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True)
    monkeypatch.setattr(console, "get_console", lambda: terminal)
    monkeypatch.setitem(start_module._SLOW_IMPORTS, "completion", "json")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    start("completion", ["bash"], "pvt-det completion")
    assert shown.getvalue() == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    start("completion", ["bash"], "pvt-det completion")
    assert "Loading PyTorch" in shown.getvalue()


def test_announced_modules_are_those_that_exist():
    assert start_module._SLOW_IMPORTS.keys() < command_line.COMMANDS.keys()
    assert all(importlib.util.find_spec(name) for name in start_module._SLOW_IMPORTS.values())


def test_warnings_of_libraries_are_hidden_when_the_package_is_imported():
    code = "import pvt_det, warnings; warnings.warn('torch.meshgrid: in an upcoming release', UserWarning)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr == ""


def test_an_existing_config_is_reported_before_the_slow_imports(tmp_path):
    (tmp_path / "mine.yaml").touch()
    code = (
        "import sys\n"
        "from pvt_det.cli.start import start\n"
        "from pvt_det.errors import ConfigError\n"
        f"try: start('inspect', ['a', '--write-config', {str(tmp_path / 'mine.yaml')!r}], 'inspect')\n"
        "except ConfigError as error: print(error)\n"
        "print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    message, modules = shown.splitlines()
    assert "mine.yaml already exists. Choose another name for the config, or remove the file. See" in message
    assert "torch" not in modules.split()
