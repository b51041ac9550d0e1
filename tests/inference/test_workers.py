"""Prediction with processes that read images and write results gives the same files, and ends cleanly."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from pvt_det.errors import DataError, Interrupted, RankError
from pvt_det.inference.files import PredictionFiles
from pvt_det.inference.journal import JOURNAL_NAME, Journal
from pvt_det.inference.pixels import Prepared
from pvt_det.inference.run import PredictionRun
from pvt_det.inference.sources import find_sources
from pvt_det.inference.times import Times
from tests.command_line import run_command

COUNT = 12


@pytest.fixture
def folder(tmp_path):
    """Images of one color each, one of which is broken."""
    path = tmp_path / "in"
    path.mkdir()
    for number in range(COUNT):
        Image.fromarray(np.full((40, 60, 3), 20 * number, np.uint8)).save(path / f"{number:02}.png")
    (path / "05.png").write_bytes(b"broken")
    return path


def measure(pixels: np.ndarray) -> dict:
    """Stands for the resizing for a model."""
    return {"image": torch.tensor(int(pixels[0, 0, 0])), "height": pixels.shape[0], "width": pixels.shape[1]}


def detect(images: list[Prepared]) -> list[Instances]:
    """Find a box whose position depends on the color of the image."""
    found = []
    for image in images:
        left = float(image.record["image"]) / 10
        box = Boxes(torch.tensor([[left, 5.0, left + 20, 30.0]]))
        fields = {"pred_boxes": box, "scores": torch.tensor([0.9]), "pred_classes": torch.tensor([0])}
        found.append(Instances((40, 60), **fields))
    return found


def build(output: Path, workers: int, *, predict=detect, prepare=measure, batch_size: int = 3) -> PredictionRun:
    return PredictionRun(
        predict,
        PredictionFiles(Journal(output), ("cat",), pictures=True, crops=True),
        batch_size=batch_size,
        progress=Progress(console=Console(record=True, width=200, quiet=True), disable=True),
        prepare=prepare,
        workers=workers,
    )


def written(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_files_and_lines_do_not_depend_on_the_number_of_processes(folder, tmp_path):
    results = []
    for workers in (0, 2):
        run = build(tmp_path / f"out{workers}", workers)
        run.progress.console.quiet = False
        errors = run.run(find_sources([str(folder)]))
        lines = [line.split(", ")[0] for line in run.progress.console.export_text().splitlines()]
        results.append((errors, sorted(lines[:-1]), written(tmp_path / f"out{workers}")))
        assert lines[-1] == f"{COUNT} images in {run.times.total:.0f} s"
    assert results[0] == results[1]
    errors, _, files = results[0]
    assert len(errors) == 1
    assert len([name for name in files if name.startswith("pictures/")]) == COUNT - 1
    listed = [Path(image["file_name"]).name for image in json.loads(files["images.json"])["images"]]
    assert listed == [f"{number:02}.png" for number in range(COUNT) if number != 5]
    boxes = [detection["bbox"][0] for detection in json.loads(files["detections.json"])]
    assert boxes == [2.0 * number for number in range(COUNT) if number != 5]


@pytest.mark.parametrize("options", [[], ["--tile", "40"]])
def test_command_finds_the_same_with_processes(untrained_run, folder, tmp_path, options):
    for workers in (0, 2):
        words = [folder, "--config-file", untrained_run, "--device", "cpu", "--output", tmp_path / f"out{workers}"]
        with pytest.raises(DataError, match=f"1 of {COUNT} files could not be read"):
            run_command("predict", [*words, "--quiet", *options, "--set", "DATALOADER.NUM_WORKERS", workers])
    assert written(tmp_path / "out0").keys() == written(tmp_path / "out2").keys()
    first, second = (json.loads((tmp_path / name / "detections.json").read_text()) for name in ("out0", "out2"))
    assert first == second
    assert len(first) > COUNT


def test_errors_of_processes_name_the_file(folder, tmp_path):
    def fail(pixels):
        raise ZeroDivisionError

    with pytest.raises(RuntimeError, match=r"(?s)00\.png cannot be read.*ZeroDivisionError|ZeroDivisionError.*00\.png"):
        build(tmp_path / "reading", 1, prepare=fail).run(find_sources([str(folder)]))
    wrong = torch.tensor([7])  # a class that does not exist

    def wrong_class(images):
        found = detect(images)
        for each in found:
            each.pred_classes = wrong
        return found

    with pytest.raises(RuntimeError, match=r"The results of .*00\.png cannot be written \(IndexError"):
        build(tmp_path / "writing", 1, predict=wrong_class).run(find_sources([str(folder)]))


def test_file_that_is_removed_before_it_is_drawn_is_reported(folder, tmp_path):
    def remove(images):
        for image in images:
            if Path(image.image).name == "07.png":
                Path(image.image).unlink()
        return detect(images)

    errors = build(tmp_path / "out", 2, predict=remove).run(find_sources([str(folder)]))
    assert [("05.png" in error, "07.png does not exist" in error) for error in errors] == [(True, False), (False, True)]
    assert len(json.loads((tmp_path / "out/images.json").read_text())["images"]) == COUNT - 2


def test_reading_ahead_is_bounded(folder, tmp_path):
    started = multiprocessing.get_context("fork").Value("i", 0)
    ahead, seen = [], 0

    def count(pixels):
        with started.get_lock():
            started.value += 1
        return measure(pixels)

    def slow(images):
        nonlocal seen
        seen += len(images)
        time.sleep(0.2)
        ahead.append(started.value - seen)
        return detect(images)

    for number in range(COUNT, 30):
        (folder / f"{number}.png").hardlink_to(folder / "00.png")
    build(tmp_path / "out", 1, predict=slow, prepare=count, batch_size=2).run(find_sources([str(folder)]))
    assert started.value == 29
    assert 1 <= max(ahead) <= 3, "the worker's two images, and one that it is reading"


def test_killed_process_is_named_and_the_run_can_be_resumed(folder, tmp_path):
    output = tmp_path / "out"
    batches = iter(range(10))

    def kill(images):
        if next(batches) == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(0.2)
        return detect(images)

    with pytest.raises(RankError, match=r"was killed.* images are in .*--resume --set DATALOADER.NUM_WORKERS 0"):
        build(output, 1, predict=kill).run(find_sources([str(folder)]))
    assert (output / JOURNAL_NAME).exists()
    journal = Journal(output)
    assert 2 <= journal.images < COUNT - 1
    again = PredictionRun(
        detect,
        PredictionFiles(journal, ("cat",), pictures=True, crops=True),
        batch_size=3,
        progress=Progress(disable=True),
        prepare=measure,
        quiet=True,
    )
    again.run(find_sources([str(folder)], journal.sources))
    build(tmp_path / "whole", 0).run(find_sources([str(folder)]))
    assert written(output) == written(tmp_path / "whole")


def test_stop_keeps_what_was_predicted_and_leaves_no_process(folder, tmp_path):
    batches = iter(range(10))

    def stop(images):
        if next(batches) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return detect(images)

    with pytest.raises(Interrupted, match=r"SIGINT; the predictions of 5 images"):
        build(tmp_path / "out", 2, predict=stop).run(find_sources([str(folder)]))
    assert Journal(tmp_path / "out").images == 5
    assert not multiprocessing.active_children()


def test_processes_end_when_the_main_process_is_killed(folder, tmp_path):
    def wait(images):
        (tmp_path / "ready").touch()
        time.sleep(60)

    child = multiprocessing.get_context("fork").Process(
        target=lambda: build(tmp_path / "out", 2, predict=wait).run(find_sources([str(folder)]))
    )
    child.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    workers = psutil.Process(child.pid).children(recursive=True)
    assert workers
    child.kill()
    child.join()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_shares_of_the_time():
    times = Times()
    for part, seconds in (("model", 9.0), ("reading", 0.8), ("writing", 0.2)):
        times._seconds[part] += seconds
    assert times.describe(20) == (
        "20 images in 10 s, 2.0 per second: the model was busy 90% of the time (8% reading, 2% writing)"
    )
