"""The command that resumes a run, for every way to start one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pvt_det.utils.resume import resume_command

_TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
_WORDS = ["--output", "a run", "SOLVER.STEPS", "[]"]
_RESUMED = "--resume --output 'a run' SOLVER.STEPS '[]'"


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Pretend that this process was started with the given words, and `arguments` for the program."""

    def as_if(*typed, script, arguments=_WORDS, processes=0):
        monkeypatch.setattr(sys, "orig_argv", [*typed, *arguments])
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        for name, value in (_TORCHRUN | {"WORLD_SIZE": str(processes)}).items() if processes else ():
            monkeypatch.setenv(name, value)

    (tmp_path / "bin").mkdir()
    for name in ("pvt-det", "torchrun"):
        (tmp_path / "bin" / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return as_if


@pytest.mark.parametrize(
    ("typed", "script"),
    [
        (["python", "tools/train_net.py"], "tools/train_net.py"),
        ([".venv/bin/python", "-W", "ignore", "train.py"], "train.py"),
        (["python3", "-m", "pvt_det.cli.main"], "/lib/pvt_det/cli/main.py"),
    ],
)
def test_a_script_is_started_as_before(start, typed, script):
    start(*typed, script=script)
    assert resume_command(False) == f"{' '.join(typed)} {_RESUMED}"


def test_pvt_det_is_named_without_a_path_only_if_the_shell_finds_it(start, tmp_path):
    for program, shown in ((tmp_path / "bin/pvt-det", "pvt-det"), (Path(".venv/bin/pvt-det"), ".venv/bin/pvt-det")):
        start("/usr/bin/python3", str(program), script=str(program), arguments=["train", *_WORDS])
        assert resume_command(False, program=[]).startswith(f"{shown} --resume train")


def test_resume_is_not_repeated(start):
    start("python", "a.py", script="a.py", arguments=["KEY", "1", "--resume"])
    assert resume_command(True) == "python a.py KEY 1 --resume"


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["/usr/bin/python3", "-u", "tools/train_net.py"], "tools/train_net.py"),
        (["/usr/bin/python3", "-u", "-m", "pvt_det.cli.main"], "-m pvt_det.cli.main"),
        (["/usr/bin/python3", "{bin}/pvt-det"], "--no-python pvt-det"),
    ],
)
def test_torchrun_starts_its_processes_again(start, tmp_path, typed, shown):
    words = [word.format(bin=tmp_path / "bin") for word in typed]
    start(*words, script=words[-1], processes=2)
    assert resume_command(False) == f"torchrun --nproc-per-node 2 {shown} {_RESUMED}"
    # On several machines, the options of torchrun differ.
    start(*words, script=words[-1], processes=4)
    assert resume_command(False) == f"torchrun OPTIONS {shown} {_RESUMED}"


def test_torchrun_that_the_shell_does_not_find(start, tmp_path):
    (tmp_path / "bin/torchrun").unlink()
    start("python", "-u", "a.py", script="a.py", processes=2)
    assert resume_command(True).startswith(
        f"{sys.executable} -m torch.distributed.run --nproc-per-node 2 a.py --output"
    )
