"""Processes that do not agree, resumed runs that changed, and processes that die or hang are named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pvt_det.checkpoint import FORMAT, CheckpointStore
from pvt_det.engine.step import TrainStep
from pvt_det.errors import RankError
from pvt_det.utils import agreement, environment, rank_watch
from pvt_det.utils.cli import run_cli
from pvt_det.utils.rank_watch import RankWatch
from tests.command_line import run_command
from tests.data.imagenet.fakes import class_folders
from tests.drills.outcome import children
from tests.ranks import TIMEOUT, Ranks
from tests.tiny_runs import CONFIG, stop_in

ONE = {"SOLVER__MAX_ITER": 1, "SOLVER__STEPS": [], "SOLVER__WARMUP_ITERS": 0}
TWO = ONE | {"SOLVER__MAX_ITER": 2}
_DONE = "Resume with: pvt-det"


@pytest.fixture
def ranks(tiny_words, repo_root, tmp_path):
    """Train with two processes that are started with different words: `ranks({"SEED": 1}, {"SEED": 2})`."""

    def start(*changes, prepare=lambda rank: None) -> Ranks:
        words = [["--config-file", repo_root / CONFIG, *tiny_words(tmp_path / "run", **each)] for each in changes]
        return Ranks(tmp_path / "out", "train", words, prepare)

    return start


def impatient(rank):
    agreement._APPEARS = 0.5


def copy_of(tiny_set, tmp_path):
    """Copy the tiny set to a folder as on another machine, and return its settings."""
    source = tiny_set.json_file
    folder = tmp_path / "elsewhere/data"
    folder.mkdir(parents=True)
    for path in tiny_set.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return {"DATASETS__TRAIN_JSON": folder / source.name, "DATASETS__TRAIN_IMAGES": folder}


@pytest.mark.parametrize("key", ["SOLVER__BASE_LR", "INPUT__MIN_SIZE_TRAIN", "TEST__EVAL_PERIOD"])
def test_F56_processes_with_different_configs(ranks, tmp_path, key):
    """Before, they trained together, or waited for each other, and exited with 0."""
    old, new = {"SOLVER__BASE_LR": (0.0001, 0.01), "TEST__EVAL_PERIOD": (0, 1)}.get(key, ([64], [96]))
    for ending in ranks(TWO | {key: old}, TWO | {key: new}).wait():
        assert ending.code == 2, ending
        shown = f"{key.replace('__', '.')} is {old} on rank 0 ({os.uname().nodename}), {new} on rank 1"
        assert ending.error.startswith(f"error: The processes of this run differ: {shown}"), ending
        assert ending.error.count("\n") == 1
    assert not list((tmp_path / "run").glob("*.pth"))


@pytest.mark.parametrize("fault", ["annotation", "missing image", "image"])
def test_F56_processes_with_different_data(ranks, tiny_set, tmp_path, fault):
    first = tiny_set.words()
    second = copy_of(tiny_set, tmp_path)
    elsewhere = Path(second["DATASETS__TRAIN_IMAGES"])
    if fault == "annotation":
        tiny_set.second["bbox"][0] += 1
        (elsewhere / "set.json").write_text(json.dumps(tiny_set.content))
    elif fault == "missing image":
        (elsewhere / "2.jpg").unlink()
    else:
        (elsewhere / "2.jpg").write_bytes((elsewhere / "3.jpg").read_bytes() + b"\xff\xd9")
    words = TWO | {"DATASETS__ON_ERROR": "skip"}
    for ending in ranks(words | first, words | second).wait():
        assert ending.code == 2, ending
        assert f"training data: {'annotations' if fault == 'annotation' else 'images'} is " in ending.error


def test_F56_hosts_without_a_common_output_folder(ranks, tmp_path):
    for ending in ranks(TWO, TWO | {"OUTPUT_DIR": tmp_path / "local"}, prepare=impatient).wait():
        assert ending.code == 2, ending
        assert f"The output folder is not shared: rank 1 ({os.uname().nodename}: {tmp_path}/local) can" in ending.error
    assert not list((tmp_path / "run").glob("*.pth"))


def test_F56_processes_with_different_libraries(ranks):
    def prepare(rank):
        environment._version = {"torch": f"2.{rank}"}.get

    for ending in ranks(TWO, TWO, prepare=prepare).wait():
        assert ending.code == 2, ending
        assert "The processes of this run differ: torch is 2.0 on rank 0" in ending.error


def test_F56_processes_with_different_weights(ranks, tiny_words, repo_root, tmp_path):
    """Detectron2 loads the file in every process, and nothing compares what it contains."""
    paths = []
    for seed in (1, 2):
        words = ["--config-file", repo_root / CONFIG, *tiny_words(tmp_path / f"{seed}", **ONE, SEED=seed)]
        assert run_command("train", words) == 0
        paths.append(tmp_path / f"{seed}/model_final.pth")
    for ending in ranks(*({"MODEL__WEIGHTS": path} | TWO for path in paths)).wait():
        assert (ending.code, "differ: weights is" in ending.error) == (2, True), ending


def test_F56_processes_that_agree_train_from_different_folders(ranks, tiny_set, tmp_path):
    """Paths, workers and the check of the data may differ between machines."""
    first, second = tiny_set.words(), copy_of(tiny_set, tmp_path)
    for ending in ranks(TWO | first, TWO | second | {"DATASETS__CHECK": "off", "DATALOADER__NUM_WORKERS": 1}).wait():
        assert ending.code == 0, ending


def test_F56_processes_of_a_classifier(tmp_path):
    class_folders(tmp_path / "set", train=4, val=2)
    class_folders(tmp_path / "other/set", train=5, val=2)
    tiny = ["--model", "pvt_v2_b0", "--img-size", 32, "--epochs", 1, "--batch-size", 4, "--warmup-epochs", 0]
    tiny += ["--device", "cpu", "--workers", 0, "--output", tmp_path / "run", "--seed", 1]
    for name, changes, part in (
        ("config", [["--lr", 0.1], ["--lr", 0.2]], "lr is 0.1 on rank 0"),
        ("data", [["--data", tmp_path / "set"], ["--data", tmp_path / "other/set"]], "training images is "),
        ("folder", [["--output", tmp_path / "run"], ["--output", tmp_path / "local"]], "folder is not shared: rank 1 "),
    ):
        words = [[*tiny, "--data", tmp_path / "set", *each] for each in changes]
        for ending in Ranks(tmp_path / name, "train-cls", words, impatient).wait():
            assert (ending.code, part in ending.error) == (2, True), ending


@pytest.fixture
def stopped(command, monkeypatch, tiny_set):
    """Words of a run that was stopped after its first iteration."""
    words = tiny_set.words() | TWO
    with monkeypatch.context() as patch:
        stop_in(patch, 1)
        assert command(**words).code == 75
    return words


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("SOLVER.IMS_PER_BATCH", 2, 4),
        ("SOLVER.ACCUMULATE_STEPS", 1, 2),
        ("DATALOADER.REPEAT_THRESHOLD", 0.0, 0.5),
        ("DATALOADER.ASPECT_RATIO_GROUPING", True, False),
    ],
)
def test_F57_resume_with_a_different_position_in_the_data(command, stopped, tmp_path, key, old, new):
    ending = command("--resume", **stopped | {key.replace(".", "__"): new})
    assert ending.code == 2, ending
    assert f"model_0000000.pth cannot be resumed: {key} was {old} and is {new}. The order of the data" in ending.error
    assert "--allow-change" not in ending.error
    allowed = command("--resume", "--allow-change", key, **stopped | {key.replace(".", "__"): new})
    assert (allowed.code, "a resumed run cannot change this" in allowed.error) == (2, True), allowed
    assert command("--resume", **stopped).code == 0
    assert not (tmp_path / "run/config_changes.json").exists()


def test_F57_resume_with_different_data(command, stopped, tiny_set):
    tiny_set.second["bbox"] = [4, 4, 12, 12]
    ending = command("--resume", **stopped | tiny_set.words())
    assert (ending.code, "training data: annotations was 4, SHA-256 " in ending.error) == (2, True), ending


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("INPUT.MIN_SIZE_TRAIN", [64], [96]),
        ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", 2.0, 1.5),
        ("INPUT.COLOR_AUG_SSD", False, True),
    ],
)
def test_F57_intended_change_is_allowed_and_recorded(command, stopped, tmp_path, key, old, new):
    words = stopped | {key.replace(".", "__"): new}
    ending = command("--resume", **words)
    assert ending.code == 2, ending
    assert f"cannot be resumed: {key} was {old} and is {new}. " in ending.error
    assert ending.error.rstrip().endswith(f"add --allow-change {key}")
    ending = command("--resume", "--allow-change", key, **words)
    assert ending.code == 0, ending
    changes = json.loads((tmp_path / "run/config_changes.json").read_text())
    assert changes == [{"iteration": 1, "key": key, "old": old, "new": new}]
    store = CheckpointStore(tmp_path / "run")
    assert store.load(store.latest())["changes"] == changes
    # The history is kept, and a change that is part of the checkpoint needs no permission.
    longer = words | {"SOLVER__MAX_ITER": 3}
    assert command("--resume", **longer).code == 0
    changes += [{"iteration": 2, "key": "SOLVER.MAX_ITER", "old": 2, "new": 3}]
    assert json.loads((tmp_path / "run/config_changes.json").read_text()) == changes


def test_F57_solver_changes_are_applied_and_recorded(command, stopped, tmp_path):
    changed = {"SOLVER__BASE_LR": 3e-7, "SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR", "TEST__DETECTIONS_PER_IMAGE": 50}
    ending = command("--resume", **stopped | changed)
    assert ending.code == 0, ending
    assert "Changed after iteration 1: " in ending.output
    assert "SOLVER.BASE_LR was 0.0001 and is 3e-07" in ending.output
    recorded = json.loads((tmp_path / "run/config_changes.json").read_text())
    assert {change["key"].replace(".", "__") for change in recorded} == changed.keys()


def test_F57_result_does_not_depend_on_workers_and_periods(command, stopped, tmp_path):
    free = {"DATALOADER__NUM_WORKERS": 1, "SOLVER__CHECKPOINT_PERIOD": 1, "DATASETS__CHECK": "off"}
    assert command("--resume", **stopped | free).code == 0
    assert not (tmp_path / "run/config_changes.json").exists()


def test_F57_checkpoint_without_a_fingerprint_resumes_with_a_warning(command, stopped, tmp_path):
    store = CheckpointStore(tmp_path / "run")
    state = store.load(store.latest())
    for key in ("fingerprint", "changes", "format"):
        del state[key]
    torch.save(state, store.folder / "model_0000000.pth")
    (store.folder / "checkpoints.json").unlink()
    ending = command("--resume", **stopped)
    assert (ending.code, "did not record the config and data of a run" in ending.output) == (0, True), ending


def test_F57_resumed_classifier_with_different_images(tmp_path, capsys):
    class_folders(tmp_path / "set", train=4, val=2)
    words = ["--model", "pvt_v2_b0", "--data", tmp_path / "set", "--output", tmp_path / "run", "--img-size", 32]
    words += ["--batch-size", 4, "--warmup-epochs", 0, "--device", "cpu", "--workers", 0, "--epochs", 1]
    assert run_command("train-cls", words) == 0
    names = sorted((tmp_path / "set/train").iterdir())
    next(names[0].iterdir()).rename(names[0] / "renamed.jpg")
    assert run_cli(lambda: run_command("train-cls", [*words, "--resume"])) == 3
    assert "was trained on the images 12, SHA-256 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--resume", "--allow-change", "INPUT.MIN_SIZE_TRIAN"], "Did you mean INPUT.MIN_SIZE_TRAIN?"),
        (["--allow-change", "INPUT.*"], "--allow-change is for resumed training only"),
    ],
)
def test_F57_option_that_changes_nothing(refused, options, part):
    refused(2, part, options=tuple(options))


def is_running(pid: int) -> bool:
    """Return whether a process runs, and is not merely not yet reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_in_step_2(folder: Path, number: int) -> Callable[[int], None]:
    """Let rank 1 send itself a signal in its second step, after it has written its workers' ids to a file."""

    def prepare(rank: int) -> None:
        run, calls = TrainStep.__call__, iter(range(1, 1000))

        def step(self, batches, *, stop_requested):
            if next(calls) == 2:
                (folder / "workers").write_text(json.dumps(children()))
                os.kill(os.getpid(), number)
            return run(self, batches, stop_requested=stop_requested)

        if rank == 1:
            TrainStep.__call__ = step

    return prepare


def test_F58_killed_rank_is_named_and_its_workers_end(ranks, tmp_path):
    """Before, the other rank showed a traceback, and the workers of the killed one lived on."""
    words = TWO | {"DATALOADER__NUM_WORKERS": 1, "SOLVER__MAX_ITER": 3}
    started = ranks(words, words, prepare=kill_in_step_2(tmp_path, signal.SIGKILL))
    killed = started.processes[1]
    killed.join(TIMEOUT)
    workers = json.loads((tmp_path / "workers").read_text())
    assert len(workers) == 1
    deadline = time.monotonic() + 3
    while is_running(workers[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(workers[0])
    ending = started.wait()[0]
    assert ending.code == RankError.exit_code == 6, ending
    assert f"Rank 1 (process {killed.pid} on {os.uname().nodename}) has died" in ending.error
    assert _DONE in ending.error
    assert "Traceback" not in ending.error


@pytest.mark.slow
def test_F58_killed_rank_of_a_launched_run(tiny_words, repo_root, tmp_path):
    words = [*tiny_words(tmp_path, SOLVER__MAX_ITER=600, SOLVER__STEPS=[]), "DATALOADER.NUM_WORKERS", "1"]
    command = [sys.executable, "-m", "pvt_det.cli.main", "train", "--num-gpus", "2", "--config-file", CONFIG, *words]
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=repo_root
    )
    for line in run.stdout:
        if "iteration 1/600" in line:
            break
    # A resource tracker is also a child of the launcher.
    ranks = [pid for pid in children(run.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    workers = [worker for rank in ranks for worker in children(rank)]
    os.kill(ranks[1], signal.SIGKILL)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 137
    # Python may warn about semaphores of the killed process after the message.
    message = f"error: Rank 1 (process {ranks[1]} on {os.uname().nodename}) was killed by SIGKILL."
    assert ["train --resume --num-gpus 2" in line for line in error.splitlines() if line.startswith(message)] == [True]
    assert "Traceback" not in error
    assert len(workers) == 2, workers
    assert not [worker for worker in workers if is_running(worker)]


def test_F72_hung_rank_is_named(ranks, monkeypatch, tmp_path):
    """The rank is stopped, not killed, so its connections stay open."""
    monkeypatch.setenv("PVT_DET_TIMEOUT", "8")
    monkeypatch.setattr(rank_watch, "_MISSING", 1)
    words = TWO | {"SOLVER__MAX_ITER": 3}
    started = ranks(words, words, prepare=kill_in_step_2(tmp_path, signal.SIGSTOP))
    hung = started.processes[1]
    started.processes[0].join(TIMEOUT)
    assert hung.is_alive()
    hung.kill()
    ending = started.wait()[0]
    assert ending.code == 6, ending
    assert f"Rank 1 (process {hung.pid} on {os.uname().nodename}) has not responded for " in ending.error
    assert _DONE in ending.error


def watch(store: dist.Store, rank: int) -> RankWatch:
    created = RankWatch(store, rank, 3, timedelta(seconds=0.4), period=0.1)
    created.start()
    return created


def test_F72_rank_that_lives_but_does_not_arrive_is_named_with_its_place():
    """Ranks 0 and 1 have read a batch, rank 2 is still reading."""
    store = dist.HashStore()
    waiting, _, slow = watches = [watch(store, rank) for rank in range(3)]
    for each in watches:
        each.batches = 1
    watches[1]._place = waiting._place = lambda: ("c10d.py:1 (all_reduce)", True)
    slow.batches, slow._place = 0, lambda: ("images.py:7 (read_image)", False)
    time.sleep(0.3)
    explanation = waiting.explain()
    for each in watches:
        each.stop("ended")
    assert explanation == (
        f"Rank 2 (process {os.getpid()} on {os.uname().nodename}) did not arrive: it is in images.py:7 (read_image)."
    )


def test_F72_process_that_waits_for_a_gpu_is_ended(monkeypatch, capsys):
    """NCCL raises no error while the main thread waits, so the watch ends the process."""
    codes = []
    monkeypatch.setattr(rank_watch, "_EXTRA", 0.2)
    monkeypatch.setattr(rank_watch.os, "_exit", codes.append)
    store = dist.HashStore()
    watches = [watch(store, rank) for rank in range(3)]
    watches[0].resume_command = "again --resume"
    watches[0].batches = 5
    deadline = time.monotonic() + 20
    while not codes and time.monotonic() < deadline:
        watches[1].batches += 5
        time.sleep(0.1)
    for each in watches:
        each.stop("ended")
    assert codes
    assert codes[0] == 6
    error = capsys.readouterr().err
    assert "Rank 2 (process" in error
    assert "again --resume" in error


def test_F72_timeout_that_is_no_number(refused, monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PVT_DET_TIMEOUT", "soon")
    refused(2, "PVT_DET_TIMEOUT is 'soon'", "positive number of seconds")


def test_F73_clock_set_back_does_not_hide_the_newest_checkpoint(tmp_path):
    """Without the pointer and the manifest, the newest file was the one with the latest time."""
    store = CheckpointStore(tmp_path)
    state = {"model": {}, "optimizer": {}, "random": [], "seed": 0}
    now = time.time()
    for iteration, name in enumerate(("model_0000000.pth", "model_0000001.pth", "model_best.pth", "model_final.pth")):
        store.save(name, state | {"iteration": iteration}, iteration)
        os.utime(tmp_path / name, (now - 1000 * iteration,) * 2)
    for newest in ("model_final.pth", "model_best.pth", "model_0000001.pth"):
        for lost in ("last_checkpoint", "checkpoints.json"):
            (tmp_path / lost).unlink(missing_ok=True)
        assert store.latest().name == newest
        (tmp_path / newest).unlink()


def test_F73_clock_set_back_does_not_delete_the_newest_checkpoints(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    state = {"model": {}, "optimizer": {}, "random": [], "seed": 0}
    now = time.time()
    for iteration in range(3):
        store.save(f"model_{iteration:07d}.pth", state | {"iteration": iteration}, iteration)
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (now - 1000 * iteration,) * 2)
    (tmp_path / "checkpoints.json").unlink()
    store.save("model_0000003.pth", state | {"iteration": 3}, 3)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [f"model_000000{n}.pth" for n in (1, 2, 3)]


def test_F74_checkpoint_of_a_newer_version(command, stopped, tmp_path):
    """Before, what this version does not know was ignored."""
    store = CheckpointStore(tmp_path / "run")
    path = store.latest()
    torch.save(torch.load(path, weights_only=True) | {"format": FORMAT + 1}, path)
    (store.folder / "checkpoints.json").unlink()
    ending = command("--resume", **stopped)
    assert ending.code == 4, ending
    assert f"{path} was saved by a newer version of pvt_det: its format is {FORMAT + 1} (code version " in ending.error
    assert "Update pvt_det" in ending.error


def test_F74_classifier_of_a_newer_version(tmp_path, capsys):
    class_folders(tmp_path / "set", train=4, val=2)
    words = ["--model", "pvt_v2_b0", "--data", tmp_path / "set", "--output", tmp_path / "run", "--img-size", 32]
    words += ["--batch-size", 4, "--warmup-epochs", 0, "--device", "cpu", "--workers", 0, "--epochs", 1]
    assert run_command("train-cls", words) == 0
    path = tmp_path / "run/model_last.pth"
    torch.save(torch.load(path, weights_only=True) | {"format": FORMAT + 1}, path)
    (tmp_path / "run/checkpoints.json").unlink()
    assert run_cli(lambda: run_command("train-cls", [*words, "--resume"])) == 4
    assert "was saved by a newer version of pvt_det" in capsys.readouterr().err
