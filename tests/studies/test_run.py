"""Running a study: what is run, resumed, kept and refused, and the table. A fast program stands in for the runs."""

from __future__ import annotations

import csv
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

import pytest

from pvt_det.errors import ConfigError, Interrupted
from pvt_det.reports.published import published_results
from pvt_det.studies import page, runner
from pvt_det.studies.jobs import study_jobs
from pvt_det.studies.run import plan_study, run_study
from pvt_det.studies.state import State
from pvt_det.studies.study import load_study
from pvt_det.studies.submit import SubmittedJob, submit_study
from pvt_det.utils.html import Html
from pvt_det.utils.lock import FolderLock
from tests.command_line import run_command
from tests.studies.fakes import STUDY

ALL = ["pretrain/trunk", *(f"retinanet/{name}/seed{seed}" for seed in (0, 1) for name in ("large", "small"))]


@pytest.fixture(autouse=True)
def _no_figures(request, monkeypatch):
    """Draw the figures in one test only, because they take most of the time."""
    if request.node.name != "test_the_table":
        monkeypatch.setattr(page, "_figures", lambda rows: Html(""))


def _run(runs, **options):
    return run_study(load_study(runs.file), samples=20, **options)


def _csv(runs):
    with (runs.folder / "output/studies/study/study.csv").open() as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def test_the_table(fake_runs, capsys):
    digest = next(row.recipe_sha256 for row in published_results() if row.config == "retinanet_pvt_v2_b1")
    coco = {"dataset": "coco_2017_val"}
    large = {"ap": 41.0, "noise": 3.0, "results": {"recipe_sha256": digest, **coco}}
    fake_runs.behave({"large": large, "small": {"ap": 40.0, "results": coco}})
    assert run_command("study", [fake_runs.file, "--bootstrap", "20"]) == 0
    assert fake_runs.folders() == ALL
    large, small = _csv(fake_runs).values()
    assert (float(large["mean"]), float(large["standard deviation"])) == (
        41.5,
        pytest.approx(statistics.stdev([41, 42]), abs=1e-4),
    )
    assert (large["runs"], large["planned"], large["seeds"]) == ("2", "2", "0:41.0000 1:42.0000")
    # The boxes of `large` are off by pixels.
    assert float(large["lower"]) < float(large["difference"]) < float(large["upper"]) < 0
    assert (small["difference"], small["published"], small["verdict"]) == ("", "", "")
    assert (float(large["published"]), large["verdict"]) == (41.2, "reproduced")
    assert "PVT v2" in large["source"]
    printed = capsys.readouterr().out
    assert "41.50 ± 0.71" in printed
    assert "5 of 5 runs are finished." in printed
    assert max(map(len, printed.split("retinanet on")[1].split("5 of 5")[0].splitlines())) <= 80
    text = (fake_runs.folder / "output/studies/study/study.md").read_text()
    assert "| large | 23.0 | 1:00:00 | 41.50 ± 0.71 | 2/2 |" in text
    assert "| small | 23.0 | 1:00:00 | 40.50 ± 0.71 | 2/2 | baseline | - |" in text
    html = (fake_runs.folder / "output/studies/study/study.html").read_text()
    assert html.count('<figure class="drawing">') == 4  # AP over parameters and time, learning curves, loss
    assert "pvt-det train --config-file retinanet_pvt_v2_b1 --output output/studies/study/retinanet/large/seed0" in html


def test_only_what_is_missing_is_run(fake_runs):
    fake_runs.behave({"large/seed1": {"exit": 3, "print": "error: train.json: broken."}})
    results = _run(fake_runs)
    assert (results.exit_code, results.finished, results.planned) == (3, 4, 5)
    (failure,) = results.failed
    assert (failure.name, failure.reason) == ("retinanet/large/seed1", "train.json: broken.")
    assert failure.command.startswith("pvt-det train --config-file retinanet_pvt_v2_b1")
    assert fake_runs.folders() == ALL
    large = _csv(fake_runs)["large"]
    assert (large["runs"], large["standard deviation"]) == ("1", "")
    assert "train.json: broken." in (fake_runs.folder / "output/studies/study/study.html").read_text()
    fake_runs.behave({})
    assert _run(fake_runs).exit_code == 0
    assert fake_runs.folders() == ["retinanet/large/seed1"]
    assert _run(fake_runs).finished == 5
    assert fake_runs.folders() == []


def test_a_failed_pretraining_fails_what_needs_it_only(fake_runs):
    fake_runs.behave({"pretrain": {"kill": True}})
    results = _run(fake_runs)
    reasons = {failure.name: failure.reason for failure in results.failed}
    assert reasons == {
        "pretrain/trunk": "killed by SIGKILL, perhaps because the memory ran out",
        **{f"retinanet/small/seed{seed}": "its pretraining trunk failed" for seed in (0, 1)},
    }
    assert (results.finished, results.exit_code) == (2, 128 + 9)


def test_ctrl_c_stops_cleanly_and_the_next_call_resumes(fake_runs):
    fake_runs.behave({"large/seed0": {"wait": True}})
    metrics = fake_runs.folder / "output/studies/study/retinanet/large/seed0/metrics.json"

    def stop():
        while not metrics.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match=r"by SIGINT, after 1 of 5 runs\. Continue with: the same"):
        _run(fake_runs, resume_command="the same")
    thread.join()
    assert fake_runs.folders() == ALL[:2]
    assert plan_study(load_study(fake_runs.file)).states["retinanet/large/seed0"] is State.INTERRUPTED
    assert _run(fake_runs).finished == 5
    calls = fake_runs.calls()
    assert [call["resumed"] for call in calls] == [True, False, False, False]
    assert all("--resume" in call["words"] for call in calls)


def test_one_run_per_gpu_at_a_time(fake_runs):
    fake_runs.behave({"retinanet": {"seconds": 0.5}})
    _run(fake_runs, devices=["0,1", "2,3"])
    calls = fake_runs.calls()
    assert {call["gpu"] for call in calls} == {"0,1", "2,3"}
    for gpu in ("0,1", "2,3"):
        starts = [call["start"] for call in calls if call["gpu"] == gpu and "retinanet" in call["folder"]]
        assert all(second - first > 0.4 for first, second in itertools.pairwise(starts))
    # `large` does not wait for the pretraining, and `small` does.
    order = [call["folder"].split("study/", 1)[1] for call in sorted(calls, key=lambda call: call["start"])]
    assert order.index("pretrain/trunk") < order.index("retinanet/small/seed0")


@pytest.mark.parametrize("threads", [None, "3"])
def test_runs_on_the_cpu_share_its_cores(threads, fake_runs, monkeypatch):
    monkeypatch.setattr(runner, "available_cores", lambda: 8)
    if threads is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    fake_runs.behave({"large": {"seconds": 1.0}})
    assert run_command("study", [fake_runs.file, "--jobs", "2", "--bootstrap", "20"]) == 0
    calls = {call["folder"].split("study/", 1)[1]: call for call in fake_runs.calls()}
    assert {call["threads"] for call in calls.values()} == {threads or "4"}
    assert abs(calls["retinanet/large/seed0"]["start"] - calls["pretrain/trunk"]["start"]) < 0.9  # at the same time
    # A single run uses what PyTorch uses.
    shutil.rmtree(fake_runs.folder / "output")
    assert run_command("study", [fake_runs.file, "--bootstrap", "20"]) == 0
    assert {call["threads"] for call in fake_runs.calls()} == {threads}


def test_a_second_study_in_the_same_folder_is_refused(fake_runs):
    folder = fake_runs.folder / "output/studies/study"
    folder.mkdir(parents=True)
    lines = ["import sys", "from pathlib import Path", "from pvt_det.utils.lock import FolderLock"]
    lines += [f"with FolderLock(Path({str(folder)!r})):", "    print(1, flush=True)", "    sys.stdin.read()"]
    code = "\n".join(lines)
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        with pytest.raises(ConfigError, match=f"process {other.pid}\\) is writing to"):
            _run(fake_runs)
        other.stdin.close()
    assert fake_runs.calls() == []
    with FolderLock(folder):  # released
        pass


def test_runs_that_are_not_what_the_study_asks_for_are_refused(fake_runs):
    _run(fake_runs)
    fake_runs.calls()
    run = fake_runs.folder / "output/studies/study/retinanet/large/seed0"

    def refused(message):
        with pytest.raises(ConfigError, match=message):
            _run(fake_runs)
        assert fake_runs.calls() == []

    fake_runs.file.write_text(STUDY.replace("MAX_ITER: 2", "MAX_ITER: 3"))
    refused("retinanet/small/seed1: SOLVER.MAX_ITER was 2 and is 3")
    fake_runs.file.write_text(STUDY.replace("epochs: 1", "epochs: 2"))
    refused("pretrain/trunk: epochs was 1 and is 2")
    fake_runs.file.write_text(
        STUDY.replace("weights: trunk", "weights: other.pth").replace('weights: ""', "weights: trunk")
    )
    refused("small/seed0: MODEL.WEIGHTS was pretraining trunk and is other.pth")
    fake_runs.file.write_text(STUDY)
    (fake_runs.folder / "val.json").write_text("[]")
    refused("data: val_json was")
    (fake_runs.folder / "val.json").write_text("{}")
    weights = fake_runs.folder / "output/studies/study/pretrain/trunk/model_best.safetensors"
    weights.write_text("others")
    refused("retinanet/small/seed0: pretrained weights was")
    weights.write_text("weights")
    detections = (run / "detections.json").read_text()
    (run / "detections.json").write_text(f"{detections} ")
    refused("large/seed0: detections.json is not the file that results.json describes")
    (run / "detections.json").write_text(detections)
    record = (run / "study.json").read_text()
    (run / "study.json").unlink()
    refused("large/seed0: it has no study.json")
    (run / "study.json").write_text(record)
    # The same data in another place is no difference.
    os.rename(fake_runs.folder / "train.json", fake_runs.folder / "moved.json")  # noqa: PTH104
    fake_runs.file.write_text(STUDY.replace("train_json: train.json", "train_json: moved.json"))
    assert _run(fake_runs).finished == 5


def test_damaged_results_are_named(fake_runs):
    _run(fake_runs)
    path = fake_runs.folder / "output/studies/study/retinanet/large/seed0/results.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ConfigError, match=r"large/seed0: .*results\.json is not valid JSON"):
        _run(fake_runs)


def test_a_plan_is_printed_and_nothing_written(fake_runs, capsys):
    assert run_command("study", [fake_runs.file, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "5 runs, 0 of them finished." in printed
    assert "In all: 5 runs, 8 iterations, unknown device-hours" in printed
    assert "add --benchmark FILE" in printed
    assert "the study's file has no seconds_per_epoch" in printed
    assert "Downloaded weights are not counted" in " ".join(printed.split())
    assert not (fake_runs.folder / "output").exists()
    benchmark = {"rows": [{"mode": "training", "model": "retinanet_pvt_v2_b1", "images_per_s": 0.01}]}
    (fake_runs.folder / "speed.json").write_text(json.dumps(benchmark))
    run_command("study", [fake_runs.file, "--dry-run", "--benchmark", "speed.json", "--only", "*/large/*"])
    printed = " ".join(capsys.readouterr().out.split())
    # Two runs of 2 iterations with 16 images at 100 seconds.
    assert "In all: 2 runs, 4 iterations, 1.8 device-hours" in printed
    assert "Hours of 2 runs: measured, speed.json." in printed
    run_study(load_study(fake_runs.file), only=["*/seed0"], samples=1)
    run_command("study", [fake_runs.file, "--dry-run"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Hours of 2 runs: measured, finished runs of this study." in printed
    assert "2.0 device-hours" in printed


def test_missing_data_is_named_before_anything_runs(fake_runs):
    fake_runs.file.write_text(STUDY.replace("{folder: pictures}", ""))
    with pytest.raises(ConfigError, match="missing: the folder of the data set pictures"):
        _run(fake_runs)
    assert fake_runs.calls() == []


def test_data_that_does_not_exist_is_named_before_anything_runs(fake_runs, capsys):
    (fake_runs.folder / "images").rmdir()
    study = STUDY.replace("train_json: train.json", "train_json: tran.json").replace("folder: pictures", "folder: x")
    fake_runs.file.write_text(study)
    problems = [
        "data.pictures.folder: x does not exist.",
        "data.things.train_json: tran.json does not exist. Did you mean train.json?",
        "data.things.train_images: images does not exist.",
    ]
    with pytest.raises(ConfigError) as caught:
        _run(fake_runs)
    assert all(problem in str(caught.value) for problem in problems)
    assert fake_runs.calls() == []
    run_command("study", [fake_runs.file, "--dry-run"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"Missing: {problems[0]} Missing: {problems[1]}" in printed
    fake_runs.file.write_text(
        study.replace("images: images", "images: s3://a/b").replace("folder: x", "folder: s3://a/c")
    )
    missing = {job.missing for job in study_jobs(load_study(fake_runs.file))}
    assert missing == {"", problems[1]}


def test_data_that_a_config_names_is_checked(fake_runs):
    fake_runs.file.write_text("""
overrides: {DATASETS: {TRAIN_JSON: train.json, TRAIN_IMAGES: x, VAL_JSON: val.json, VAL_IMAGES: images}}
grids:
  a: {configs: [retinanet_pvt_tiny]}
  b: {configs: [retinanet_pvt_tiny], evaluate: true}
""")
    train, evaluation = sorted(study_jobs(load_study(fake_runs.file)), key=lambda job: job.name)
    assert (train.missing, evaluation.missing) == ("DATASETS.TRAIN_IMAGES: x does not exist.", "")


def test_the_table_alone(fake_runs, capsys):
    assert run_command("study", [fake_runs.file, "--table-only"]) == 0
    assert "0 of 5 runs are finished." in capsys.readouterr().out
    assert fake_runs.calls() == []
    assert "large,0,2" in (fake_runs.folder / "output/studies/study/study.csv").read_text()


def test_evaluations_are_compared_with_the_published_results_of_their_config(fake_runs, capsys):
    fake_runs.file.write_text(
        "grids: {zoo: {evaluate: true, configs: {tiny: {config: retinanet_pvt_tiny, weights: a.pth}}}}"
    )
    fake_runs.behave({"tiny": {"ap": 36.0, "results": {"dataset": "coco_2017_val"}}})
    run_command("study", [fake_runs.file, "--dry-run"])
    printed = capsys.readouterr().out
    assert "Unknown hours of evaluations: they are not estimated." in printed
    assert "--benchmark" not in printed
    assert _run(fake_runs).exit_code == 0
    (call,) = fake_runs.calls()
    assert "--resume" not in call["words"]
    tiny = _csv(fake_runs)["tiny"]
    assert (tiny["published"], tiny["verdict"], tiny["mean"]) == ("36.7000", "below", "36.0000")


def test_jobs_for_a_cluster(fake_runs):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    study = load_study(fake_runs.file)
    jobs = submit_study(study, cluster="debug", parameters={"timeout_min": "2"})
    for job in jobs:
        job.result()
    assert fake_runs.folders() == ALL
    assert _run(fake_runs, train=False).finished == 5
    assert submit_study(study, cluster="debug") == []
    with pytest.raises(ConfigError, match=r"--submit: .*Check --cluster and --slurm"):
        submit_study(study, cluster="debug", parameters={"nothing": "2"})


def test_runs_wait_only_for_their_own_pretraining_on_a_cluster(fake_runs, monkeypatch):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    programs, scripts = fake_runs.folder / "bin", fake_runs.folder / "scripts"
    for folder in (programs, scripts):
        folder.mkdir()
    count = f"n=$(($(ls {scripts} | wc -l) + 1))"
    submit = f'{count}; cp "$1" {scripts}/$n; echo "Submitted batch job $n"'
    for name, command in (("sbatch", submit), ("srun", "exit 1")):
        (programs / name).write_text(f"#!/bin/sh\n{command}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    study = STUDY.replace("seeds:", "  other: {model: pvt_v2_b1, data: pictures, options: {workers: 2}}\nseeds:")
    study = study.replace('weights: ""', "weights: other")
    fake_runs.file.write_text(f"{study}      plain: retinanet_pvt_v2_b0\n")
    more = {"slurm_additional_parameters": {"nice": 5}}

    def submitted(**options):
        jobs = submit_study(load_study(fake_runs.file), **options)
        found = []
        for path in sorted(scripts.iterdir()):
            lines = re.findall("^#SBATCH --(.+?)=(.+)", path.read_text(), re.MULTILINE)
            found.append(dict(lines))
            path.unlink()
        return [job.job_id for job in jobs], found

    ids, found = submitted(processes=2, parameters=more)
    # The order is that of the runs: the pretrainings, and for each seed `large`, `small` and `plain`.
    assert ids == ["1_0", "1_1", "3_0", "4_0", "2_0", "3_1", "4_1", "2_1"]
    keys = ("array", "dependency", "kill-on-invalid-dep", "nice", "cpus-per-task", "gpus-per-node")
    assert [tuple(script.get(key) for key in keys) for script in found] == [
        ("0-1%2", None, None, "5", "18", "2"),
        ("0-1%2", None, None, "5", "10", "2"),
        ("0-1%2", "afterok:1_1", "yes", "5", "10", "2"),
        ("0-1%2", "afterok:1_0", "yes", "5", "10", "2"),
    ]
    # A finished pretraining is not waited for, and the parameters of the caller take precedence.
    assert run_study(load_study(fake_runs.file), only=["pretrain/trunk"]).finished == 1
    _, found = submitted(parameters={"cpus_per_task": "3", "slurm_dependency": "afterany:7"})
    assert [(script["dependency"], script["cpus-per-task"]) for script in found] == [
        ("afterany:7", "3"),
        ("afterany:7", "3"),
        ("afterany:7,afterok:1", "3"),
    ]
    with pytest.raises(ConfigError, match=r"--submit: .*timeout_min"):
        submitted(parameters={"timeout_min": "long"})


def test_a_submitted_job_that_fails_or_is_out_of_time(fake_runs):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    fake_runs.behave({"large/seed0": {"exit": 3, "print": "error: broken."}, "large/seed1": {"wait": True}})
    jobs = {job.name: SubmittedJob(job, "study", 1) for job in study_jobs(load_study(fake_runs.file))}
    with pytest.raises(RuntimeError, match=r"retinanet/large/seed0 failed: broken\."):
        jobs["retinanet/large/seed0"]()
    job = jobs["retinanet/large/seed1"]

    def stopped():
        with pytest.raises(RuntimeError, match="stopped: by SIGTERM"):
            job()

    thread = threading.Thread(target=stopped)
    thread.start()
    while not (fake_runs.folder / "output/studies/study/retinanet/large/seed1/metrics.json").exists():
        time.sleep(0.02)
    again = job.checkpoint()
    thread.join()
    assert plan_study(load_study(fake_runs.file)).states["retinanet/large/seed1"] is State.INTERRUPTED
    pickle.loads(pickle.dumps(again.function))()
    assert [call["resumed"] for call in fake_runs.calls()] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs 0: expected 1 or more"),
        (["--jobs", "2", "--gpus", "0,1"], "--jobs is for runs on the CPU"),
        (["--jobs", "2", "--submit"], "--jobs is for runs on the CPU"),
        (["--gpus", "0,0"], "expected different GPUs"),
        (["--gpus", "0,1,2", "--gpus-per-run", "2"], "3 GPUs cannot be split into runs of 2"),
        (["--dry-run", "--submit"], "--dry-run and --submit exclude each other"),
        (["--slurm", "timeout_min=3"], "no effect without --submit"),
        (["--benchmark", "x.json"], "no effect without --dry-run"),
        (["--only", "*/seed7"], "no run has such a name"),
        (["--onlyy", "x"], "Did you mean --only"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
    ],
)
def test_options_that_do_not_fit_are_refused(fake_runs, options, message):
    with pytest.raises(ConfigError, match=message):
        run_command("study", [fake_runs.file, *options])
    assert fake_runs.calls() == []
