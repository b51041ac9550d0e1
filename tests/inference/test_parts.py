"""A prediction in parts gives the files of an undivided one, and parts that do not fit are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from pvt_det.errors import ConfigError, DataError, Interrupted
from pvt_det.inference.files import PredictionFiles
from pvt_det.inference.journal import JOURNAL_NAME, Journal
from pvt_det.inference.merging import merge_parts
from pvt_det.inference.parts import open_plan, predict_parts, read_plan
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.run import PredictionRun
from pvt_det.inference.sources import find_sources
from pvt_det.utils.claims import Claims
from tests.command_line import run_command

COUNT, PARTS = 10, 3
NAMES = ["1-of-3", "2-of-3", "3-of-3"]


@pytest.fixture
def folder(tmp_path):
    """Images of one color each, one of which is broken."""
    path = tmp_path / "in"
    path.mkdir()
    for number in range(COUNT):
        Image.fromarray(np.full((40, 60, 3), 20 * number, np.uint8)).save(path / f"{number}.png")
    (path / "5.png").write_bytes(b"broken")
    return path


@pytest.fixture
def words(untrained_run, folder):
    """Arguments of `pvt-det predict`, without the output folder."""
    return [folder, "--config-file", untrained_run, "--device", "cpu", "--quiet", "--batch-size", "2"]


def detect(images):
    """Find as many boxes as the color of an image says."""
    found = []
    for image in images:
        count = int(image[0, 0, 0]) // 20 % 3
        boxes = Boxes(torch.tensor([[float(number), 5.0, 30.5, 30.0] for number in range(count)]).reshape(-1, 4))
        fields = {"scores": torch.full((count,), 0.9), "pred_classes": torch.zeros(count, dtype=torch.int64)}
        found.append(Instances((40, 60), pred_boxes=boxes, **fields))
    return found


def predict(
    folder: Path, output: Path, *, predict=detect, count=PARTS, numbers=None, say=lambda line: None, **settings
):
    """Predict in parts, without a model."""
    output.mkdir(exist_ok=True)
    sources = find_sources([str(folder)])

    def predict_part(tables, part, check):
        def checked(images):
            check()
            return predict(images)

        files = PredictionFiles(Journal(tables), ("cat",), pictures=False, crops=False, folder=output)
        progress = Progress(console=Console(quiet=True), disable=True)
        return PredictionRun(checked, files, batch_size=2, progress=progress, quiet=True).run(part), "something"

    plan = open_plan(output, sources, count, {"model": "a"}, 2)
    return predict_parts(plan, numbers or range(1, count + 1), sources, predict_part, say)


def written(output: Path) -> dict[str, bytes]:
    """Return the files of a prediction by name, without its parts."""
    files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(("parts/", "."))}


def test_merged_parts_equal_an_undivided_prediction(words, folder, tmp_path, capsys):
    options = [*words, "--format", "yolo", "--crops"]
    with pytest.raises(DataError, match="1 of 10 files could not be read"):
        run_command("predict", [*options, "--output", tmp_path / "whole"])
    divided = [*options, "--output", tmp_path / "out"]
    assert run_command("predict", [*divided, "--part", "1/3"]) == 0
    assert "part 1 of 3 is finished" in capsys.readouterr().out
    with pytest.raises(DataError, match="1 of 8 files could not be read"):
        run_command("predict", [*divided, "--parts", "3"])
    assert (
        f"all 3 parts are finished. Merge them with: pvt-det predict --merge {tmp_path}/out" in capsys.readouterr().out
    )
    assert run_command("predict", [*divided, "--part", "2/3"]) == 0
    assert "part 2 of 3 was finished before" in capsys.readouterr().out
    with pytest.raises(DataError, match="1 of 10 files could not be read"):
        run_command("predict", ["--merge", tmp_path / "out"])
    printed = capsys.readouterr()
    assert "5.png" in printed.err
    whole = written(tmp_path / "whole")
    assert written(tmp_path / "out") == whole
    assert len(json.loads(whole["detections.json"])) > COUNT
    assert len([name for name in whole if name.startswith("yolo/labels/")]) == COUNT - 1


def test_plan_and_manifest_say_what_belongs_to_a_part(words, folder, tmp_path):
    with pytest.raises(DataError):
        run_command("predict", [*words, "--output", tmp_path / "out", "--no-pictures", "--part", "2/3"])
    plan = read_plan(tmp_path / "out")
    assert [[Path(name).name for name in part] for part in plan.parts] == [
        ["0.png", "1.png"],
        ["2.png", "3.png", "4.png", "5.png"],
        ["6.png", "7.png", "8.png", "9.png"],
    ]
    found = json.loads((tmp_path / "out/parts/2-of-3/part.json").read_text())
    assert (found["part"], found["parts"], found["plan_sha256"]) == (2, 3, plan.digest)
    assert found["unreadable"] == [str(folder / "5.png")]
    assert len(found["errors"]) == 1
    assert found["settings"] == plan.settings
    assert plan.settings["--score-threshold"] == 0.5
    assert len(plan.settings["model"]) == 64
    assert set(found["files"]) == {"detections.json", "images.json"}


def test_parts_with_other_settings_images_or_counts_are_refused(words, folder, tmp_path):
    output = ["--output", tmp_path / "out", "--no-pictures"]
    run_command("predict", [*words, *output, "--part", "1/3"])
    again = [*words, *output, "--part", "2/3"]
    # Where the model runs does not matter.
    with pytest.raises(DataError, match="1 of 4 files could not be read"):
        run_command("predict", [*again, "--set", "DATALOADER.NUM_WORKERS", "0"])
    for option, message in (
        (["--score-threshold", "0.3"], "a different --score-threshold and model. Use what the parts were started with"),
        (["--classes", "star"], "a different --classes. "),
        (["--set", "INPUT.MIN_SIZE_TEST", "48"], "a different model. "),
        (["--part", "2/4"], "is divided into 3 parts, not 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_command("predict", [*again, *option])
    with pytest.raises(ConfigError, match=r"contains the parts of a divided prediction\. Merge them with --merge"):
        run_command("predict", [*words, *output])
    Image.new("RGB", (60, 40)).save(folder / "55.png")
    with pytest.raises(ConfigError, match=r"another list of images: added .*55\.png\. Use what the parts"):
        run_command("predict", again)
    (folder / "55.png").unlink()
    (folder / "7.png").unlink()
    with pytest.raises(ConfigError, match=r"another list of images: missing .*7\.png\. Use"):
        run_command("predict", again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "0/3"], r"'0/3': expected a part from 1, such as 1/100"),
        (["--part", "4/3"], r"'4/3': expected a part from 1"),
        (["--part", "2"], r"'2': expected a part from 1"),
        (["--parts", "0"], r"'0': expected a number of parts"),
        (["--parts", "6"], r"10 files in batches of 2 cannot be divided into 6 parts\. Expected at most 5\. Use fewer"),
        (["--part", "1/3", "--parts", "3"], r"not allowed with argument --part"),
        (["--merge", "out"], r"argument INPUT: has no effect with --merge"),
    ],
)
def test_wrong_numbers_of_parts_are_refused(words, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run_command("predict", [*words, "--output", tmp_path / "out", *options])


def test_missing_arguments_are_named():
    with pytest.raises(ConfigError, match=r"the following arguments are required: INPUT, --config-file\."):
        run_command("predict", [])
    with pytest.raises(ConfigError, match=r"unrecognized arguments: --config-fiel.*Did you mean --config-file\?"):
        run_command("predict", ["a.png", "--config-fiel", "run"])


def test_merge_names_parts_that_are_missing_or_do_not_fit(folder, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(DataError, match=r"in has no parts/plan\.json"):
        run_command("predict", ["--merge", folder])
    with pytest.raises(DataError, match=r"nowhere does not exist\. Expected the --output"):
        run_command("predict", ["--merge", tmp_path / "nowhere"])
    predict(folder, output, numbers=[2])
    with Claims(output / "parts").claim("3-of-3"), pytest.raises(DataError) as raised:
        merge_parts(output)
    assert rf"2 of 3 parts are missing: 1, 3 (process {os.getpid()} on " in str(raised.value)
    predict(folder, output)
    parts = output / "parts"
    one, two, _ = (parts / name for name in NAMES)
    cases = {
        "1-of-3: detections.json was changed since it was written": lambda: (one / "detections.json").write_text("[]"),
        "1-of-3: contains part 2": lambda: replace(two, one),
        "2-of-3 (copy): not one of the 3 parts": lambda: shutil.copytree(two, parts / "2-of-3 (copy)"),
        "2-of-3: was made with a different model": lambda: edit(two / "part.json", settings={"model": "b"}),
        "2-of-3: was made with another plan.json": lambda: edit(two / "part.json", plan_sha256="0"),
        "2-of-3: images.json does not have the images of part 2": lambda: edit(two / "part.json", unreadable=[]),
        "2-of-3: part.json is not complete": lambda: (two / "part.json").write_text("{}"),
        "2-of-3/part.json cannot be read": lambda: (two / "part.json").write_text("{"),
        "2-of-3/images.json": lambda: (two / "images.json").unlink(),
    }
    shutil.copytree(parts, tmp_path / "kept")
    for message, damage in cases.items():
        damage()
        with pytest.raises(DataError) as raised:
            merge_parts(output)
        assert message in str(raised.value)
        assert not (output / "detections.json").exists()
        replace(tmp_path / "kept", parts)
    assert merge_parts(output).images == COUNT - 1


def replace(source: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(source, folder)


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_interrupted_part_continues_where_it_stopped(folder, tmp_path):
    seen = []

    def stop(images):
        seen.append(len(images))
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return detect(images)

    with pytest.raises(Interrupted, match=r"by SIGTERM; the predictions of 2 images are in .*2-of-3\.attempt-1"):
        predict(folder, tmp_path / "out", predict=stop)
    assert Journal(tmp_path / "out/parts/2-of-3.attempt-1").images == 2
    again, lines = [], []

    def count(images):
        again.append(len(images))
        return detect(images)

    result = predict(folder, tmp_path / "out", predict=count, say=lines.append)
    assert (result.skipped, result.finished, len(result.errors)) == ([1], [2, 3], 1)
    assert again == [1, 2, 2], "one image of part 2, since the other one is broken, and those of part 3"
    assert sorted(path.name for path in (tmp_path / "out/parts").iterdir()) == [*NAMES, "plan.json"]
    merge_parts(tmp_path / "out")
    predict(folder, tmp_path / "whole", count=1)
    merge_parts(tmp_path / "whole")
    assert written(tmp_path / "out") == written(tmp_path / "whole")


def test_signal_in_the_last_batch_of_a_part_stops_after_it(words, folder, tmp_path, monkeypatch):
    call = Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or call(*args))
    with pytest.raises(
        Interrupted, match=r"by SIGTERM, after a part\. Continue with: pvt-det predict .*in --config-file"
    ):
        run_command("predict", [*words, "--output", tmp_path / "out", "--no-pictures", "--parts", "5"])
    assert sorted(path.name for path in (tmp_path / "out/parts").iterdir()) == ["1-of-5", "plan.json"]


def test_part_that_was_taken_over_is_left_to_the_other_process(folder, tmp_path):
    """The process was stopped for longer than the lease."""
    lines, batches = [], []

    def stopped(images):
        batches.append(len(images))
        if len(batches) == 1:
            work = tmp_path / "out/parts"
            shutil.copytree(work / "1-of-3.attempt-1", work / "1-of-3.attempt-2")
            assert (work / "1-of-3.attempt-2" / JOURNAL_NAME).exists()
            (work / "1-of-3.attempt-2/released").touch()  # and then the other process was stopped as well
        return detect(images)

    result = predict(folder, tmp_path / "out", predict=stopped, say=lines.append)
    assert [line for line in lines if "note" in line] == [
        "note: part 1-of-3 was taken over by another process, because this one gave no sign of life for 120 seconds."
    ]
    assert sorted(result.finished) == [1, 2, 3]
    assert merge_parts(tmp_path / "out").images == COUNT - 1


def test_part_that_another_process_has_finished_meanwhile_is_left_alone(folder, tmp_path):
    lines, batches = [], []

    def stopped(images):
        batches.append(len(images))
        if len(batches) == 1:
            (tmp_path / "out/parts/1-of-3.attempt-1/released").touch()
            assert predict(folder, tmp_path / "out", numbers=[1]).finished == [1]
        return detect(images)

    result = predict(folder, tmp_path / "out", predict=stopped, say=lines.append)
    assert [line for line in lines if "note" in line] == [
        "note: part 1-of-3 was taken over by another process, because this one gave no sign of life for 120 seconds."
    ]
    assert (result.skipped, result.finished) == ([1], [2, 3])
    assert sorted(path.name for path in (tmp_path / "out/parts").iterdir()) == [*NAMES, "plan.json"]
    assert merge_parts(tmp_path / "out").images == COUNT - 1


def test_part_that_another_process_works_on_is_refused(words, tmp_path):
    output = ["--output", tmp_path / "out", "--no-pictures"]
    run_command("predict", [*words, *output, "--part", "1/3"])
    expected = rf"part 3 of 3: process {os.getpid()} on .* is working on it\. Wait"
    with Claims(tmp_path / "out/parts").claim("3-of-3"), pytest.raises(ConfigError, match=expected):
        run_command("predict", [*words, *output, "--part", "3/3"])


def test_label_maps_and_a_video_in_parts(segmentor_run, folder, tmp_path, capsys):
    import cv2

    writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (60, 40))
    for value in (0, 100, 200):
        writer.write(np.full((40, 60, 3), value, np.uint8))
    writer.release()
    (folder / "5.png").unlink()
    words = [folder, "--config-file", segmentor_run, "--device", "cpu", "--quiet", "--no-pictures", "--batch-size", 3]
    assert run_command("predict", [*words, "--output", tmp_path / "whole"]) == 0
    assert run_command("predict", [*words, "--output", tmp_path / "out", "--parts", "3"]) == 0
    assert run_command("predict", ["--merge", tmp_path / "out"]) == 0
    assert f"12 images: {tmp_path}/out/images.json\n" in capsys.readouterr().out
    assert written(tmp_path / "out") == written(tmp_path / "whole")
    with pytest.raises(ConfigError, match="camera 0 is a live stream, which has no parts"):
        run_command("predict", ["0", *words, "--output", tmp_path / "live", "--parts", "3"])
