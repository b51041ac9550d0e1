"""Long outputs survive any end, names cannot collide or attack, and a full disk costs at most a log."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from pvt_det.data.workers import WorkerLoader, start_worker
from pvt_det.engine import trainer
from pvt_det.errors import ConfigError, DataError, Interrupted
from pvt_det.inference.files import PredictionFiles
from pvt_det.inference.journal import JOURNAL_NAME, Journal
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.run import PredictionRun
from pvt_det.inference.sources import Source, find_sources
from pvt_det.run_folder import DETECTIONS_NAME
from pvt_det.utils.cli import run_cli
from pvt_det.utils.tables import as_csv, as_markdown
from tests.command_line import run_command
from tests.drills.outcome import resident_bytes
from tests.faults.conftest import in_child
from tests.reports.test_card import run as card_run  # noqa: F401  (fixture)
from tests.tiny_runs import CONFIG

ESCAPES = "\x1b]0;owned\x07\x1b[2J\r\x9b\u202e"


def boxes(count: int, size: tuple[int, int]) -> Instances:
    """Return detections with different positions and scores."""
    corners = torch.arange(count).float()[:, None] % 32
    return Instances(
        size,
        pred_boxes=Boxes(torch.cat([corners, corners, corners + 9, corners + 7], 1)),
        scores=torch.linspace(0.99, 0.5, count),
        pred_classes=torch.arange(count) % 2,
    )


@pytest.fixture
def folder_of_images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10):
        Image.fromarray(np.full((48, 64, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


def stub_run(output: Path, predict=None, *, batch_size: int = 2, count: int = 3, crops: bool = False) -> PredictionRun:
    """A prediction run without a model."""
    files = PredictionFiles(Journal(output), ("bowl", "cup"), pictures=False, crops=crops)
    return PredictionRun(
        predict or (lambda images: [boxes(count, image.shape[:2]) for image in images]),
        files,
        batch_size=batch_size,
        progress=Progress(console=Console(quiet=True), disable=True),
    )


def run_stub(output: Path, *inputs: Path, **options) -> list[str]:
    run = stub_run(output, **options)
    return run.run(find_sources(map(str, inputs), run.files.journal.sources))


def content(output: Path) -> tuple[list, dict]:
    """Read the detections and the list of images."""
    assert not (output / JOURNAL_NAME).exists()
    return json.loads((output / DETECTIONS_NAME).read_text()), json.loads((output / "images.json").read_text())


def full_disk(*_: object, **__: object):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def end_in_batch(number: int, action):
    """A stub model that ends the run in its `number`-th batch."""
    batches = iter(range(1, 100))

    def predict(images):
        if next(batches) == number:
            action()
        return [boxes(3, image.shape[:2]) for image in images]

    return predict


@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM", "SIGKILL", "full disk", "bug"])
def test_F61_predictions_survive_any_end_and_resume(folder_of_images, tmp_path, monkeypatch, end):
    output = tmp_path / "out"
    run_stub(tmp_path / "whole", folder_of_images)

    def stop():
        if end == "full disk":
            monkeypatch.setattr(Journal, "flush", full_disk)
        elif end == "bug":
            raise ZeroDivisionError
        else:
            os.kill(os.getpid(), signal.Signals[end])

    def predict_and_stop():
        run_stub(output, folder_of_images, predict=end_in_batch(3, stop))

    if end == "SIGKILL":
        child = multiprocessing.get_context("fork").Process(target=predict_and_stop)
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    else:
        errors = {"full disk": ConfigError, "bug": ZeroDivisionError}
        with pytest.raises(errors.get(end, Interrupted)) as raised:
            predict_and_stop()
        if end != "bug":
            assert str(output / JOURNAL_NAME) in str(raised.value)
            assert "--resume" in str(raised.value)
    monkeypatch.undo()
    journal = Journal(output)
    # A signal lets the batch finish.
    assert journal.images == (6 if end in ("SIGINT", "SIGTERM") else 4)
    assert [Path(shown).name for shown in journal.sources] == [f"{number}.png" for number in range(journal.images)]
    seen = []
    run_stub(output, folder_of_images, predict=lambda images: seen.extend(images) or [boxes(3, (48, 64))] * len(images))
    assert len(seen) == 10 - journal.images
    assert content(output) == content(tmp_path / "whole")


@pytest.mark.parametrize("torn", [b'{"file_name": "torn.png", "na', b'\x00\x00\x00\n{"name": 1}\n', b"[]\n"])
def test_F61_torn_line_is_predicted_again(folder_of_images, tmp_path, torn):
    output = tmp_path / "out"
    run_stub(tmp_path / "whole", folder_of_images)
    with pytest.raises(ZeroDivisionError):
        run_stub(output, folder_of_images, predict=end_in_batch(2, lambda: 1 // 0))
    with (output / JOURNAL_NAME).open("ab") as file:
        file.write(torn)
    run_stub(output, folder_of_images)
    assert content(output) == content(tmp_path / "whole")


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (64, 48))
    for _ in range(frames):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    return path


def test_F61_unfinished_video_starts_again(folder_of_images, tmp_path):
    inputs = [folder_of_images, write_video(tmp_path / "v.avi", 5), folder_of_images / "9.png"]
    run_stub(tmp_path / "whole", *inputs)
    with pytest.raises(ZeroDivisionError):
        run_stub(tmp_path / "out", *inputs, predict=end_in_batch(7, lambda: 1 // 0))
    assert Journal(tmp_path / "out").images == 10
    run_stub(tmp_path / "out", *inputs)
    found, listed = content(tmp_path / "out")
    assert (found, listed) == content(tmp_path / "whole")
    assert [image.get("frame") for image in listed["images"]] == [None] * 10 + [1, 2, 3, 4, 5]


def test_F61_command_stops_refuses_to_overwrite_and_resumes(untrained_run, shapes, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    words = [shapes / "val", "--config-file", untrained_run, "--device", "cpu", "--batch-size", 1, "--no-pictures"]
    notices = []
    monkeypatch.setattr("pvt_det.utils.signals.show_notice", notices.append)
    monkeypatch.setattr("pvt_det.utils.progress._LEAST_SECONDS", 0.0)

    def predict(*more):
        code = run_cli(lambda: run_command("predict", [*words, "--output", output, *more]))
        return code, capsys.readouterr()

    call = Predictor.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", lambda *args: os.kill(os.getpid(), signal.SIGINT) or call(*args))
        code, printed = predict()
    assert code == 75
    assert f"stopped: by SIGINT; the predictions of 1 images are in {output / JOURNAL_NAME}. " in printed.err
    assert "Resume with: pvt-det predict --resume " in printed.err
    assert notices == ["Saving after this batch; press Ctrl-C again to stop now."]
    code, printed = predict()
    assert (code, "unfinished prediction of 1 image. Continue it with --resume" in printed.err) == (2, True)
    code, printed = predict("--resume", "--tile", 64)
    assert (code, "was started with a different --tile" in printed.err) == (2, True)
    code, printed = predict("--resume")
    assert (code, "3 images: " in printed.out) == (0, True), printed
    assert printed.err.count("predicting") == 2  # a line per image
    assert "predicting 3/3  eta 0:00:00" in printed.err
    resumed = content(output)
    output = tmp_path / "at once"
    assert predict("--resume")[0] == 0
    assert content(output) == resumed


def test_F62_train_keeps_hidden_files_of_others(command, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    foreign = [".notes.tmp", ".cache.12.tmp", ".model_backup.pth.tmp", ".report.html.7.tmp"]
    own = [".model_0000003.pth.tmp", ".model_best.pth.tmp", ".checkpoints.json.77.tmp", ".last_checkpoint.77.tmp"]
    for name in foreign + own:
        (run / name).touch()
    assert command(SOLVER__MAX_ITER=1, SOLVER__STEPS=[]).code == 0
    assert sorted(path.name for path in run.glob(".*.tmp")) == sorted(foreign)


def test_F63_names_of_output_files_never_collide(tmp_path):
    """Frames of v.avi would have had the names of the pictures in v/."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first / "v/000001.png", first / "a.png", first / "A.jpg", second / "v/000001.png", second / "b_2.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
    for name in ("b.png", "b.jpg"):
        shutil.copy(second / "b_2.png", second / name)
    video = write_video(first / "v.avi", 2)
    run_stub(tmp_path / "out", first, second, video, count=2, crops=True)
    found, listed = content(tmp_path / "out")
    names = {image["name"].casefold(): image["file_name"] for image in listed["images"]}
    assert len(names) == len(listed["images"]) == 9
    assert [image["file_name"] for image in listed["images"] if "frame" in image] == [str(video)] * 2
    # As many crops as detections, so none was overwritten.
    assert len(list((tmp_path / "out/crops").rglob("*.jpg"))) == len(found) == 18
    again = find_sources([str(first), str(second), str(video)])
    assert {source.name.as_posix().casefold() for source in again if not source.is_video} <= names.keys()


def test_F63_crops_of_different_classes_have_different_folders(tmp_path):
    files = PredictionFiles(Journal(tmp_path), ("and/or", "and_or"), pictures=False, crops=True)
    files.add(Source(tmp_path / "a.png", PurePath("a")), np.zeros((48, 64, 3), np.uint8), boxes(2, (48, 64)))
    found = sorted(path.relative_to(tmp_path / "crops").as_posix() for path in tmp_path.rglob("*.jpg"))
    assert found == ["and_or/a_1.jpg", "and_or_2/a_2.jpg"]


def test_F64_full_disk_drops_the_logs_and_not_the_run(command, monkeypatch, tmp_path):
    """Writing to /dev/full fails like a full disk, also when a buffer is flushed on closing."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.txt").symlink_to("/dev/full")
    monkeypatch.setattr(trainer, "JSONWriter", lambda path: JSONWriter("/dev/full"))
    monkeypatch.setattr(TensorboardXWriter, "write", full_disk)
    monkeypatch.setattr(trainer, "save_batch_picture", full_disk)
    ending = command(SOLVER__MAX_ITER=2, SOLVER__STEPS=[])
    assert ending.code == 0, ending
    for name in ("JSONWriter", "TensorboardXWriter", str(run / "log.txt"), str(run / "train_batch.jpg")):
        assert len([line for line in ending.output.splitlines() if name in line and "No space left" in line]) == 1
    assert "Logging error" not in ending.error
    assert (run / "model_final.pth").exists()


def test_F64_full_disk_drops_the_metrics_of_a_classifier(tmp_path, monkeypatch, caplog):
    from pvt_det.classification import metrics

    monkeypatch.setattr(metrics._JsonLines, "write", full_disk)
    monkeypatch.setattr(metrics._TensorBoard, "close", full_disk)
    row = {"epoch": 0, "update": 1, "loss": 1.0, "lr": 0.1, "images_per_s": 1.0, "waiting": 0.0}
    with caplog.at_level(logging.WARNING), metrics.MetricsWriter(tmp_path, 2, 0) as writer:
        writer.write_training(row)
        writer.write_training(row)
    messages = [record.message for record in caplog.records]
    assert [message.split(" cannot")[0] for message in messages] == [
        str(tmp_path / "metrics.json"),
        str(tmp_path / "tensorboard"),
    ]


def has_no_escapes(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_F65_escapes_in_file_names_do_not_reach_the_terminal(untrained_run, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    file = tmp_path / f"in/{ESCAPES}.png"
    file.write_bytes(b"damaged")
    words = [tmp_path / "in", "--config-file", untrained_run, "--device", "cpu", "--output", tmp_path / ESCAPES]
    assert run_cli(lambda: run_command("predict", words)) == 3
    printed = capsys.readouterr()
    # Rich leaves out bells and carriage returns.
    assert r"\x1b]0;owned\x1b[2J\x9b\u202e.png" in printed.err
    assert r"\x1b]0;owned\x07\x1b[2J\r\x9b\u202e" in printed.out
    assert run_cli(lambda: run_command("predict", [f"{ESCAPES}.jpg", *words[1:]])) == 3
    more = capsys.readouterr()
    assert has_no_escapes(printed.err + printed.out + more.err + more.out)


def test_F65_escapes_do_not_reach_the_log(command, tiny_set, tmp_path):
    tiny_set.folder = tiny_set.folder.rename(tiny_set.folder.parent / f"data{ESCAPES}")
    tiny_set.image(1).write_bytes(b"damaged")
    ending = command(**tiny_set.words(), DATASETS__ON_ERROR="skip", SOLVER__MAX_ITER=1, SOLVER__STEPS=[])
    assert ending.code == 0, ending
    log = (tmp_path / "run/log.txt").read_text()
    assert r"\x1b]0;owned" in log
    assert has_no_escapes(log + ending.error + ending.output)


def test_F65_escapes_do_not_reach_the_terminal_through_rich(capsys, monkeypatch, tiny_set):
    folder = tiny_set.folder = tiny_set.folder.rename(tiny_set.folder.parent / f"data{ESCAPES}")
    monkeypatch.setenv("COLUMNS", "400")
    words = [tiny_set.json_file, folder]
    run_cli(lambda: run_command("inspect", words))
    printed = capsys.readouterr()
    assert r"\x1b[2J" in printed.out
    assert has_no_escapes(printed.out + printed.err)


def test_F65_colors_of_rich_still_reach_a_terminal(capsys, monkeypatch):
    from pvt_det.utils.console import Console as SafeConsole

    def main():
        SafeConsole(force_terminal=True, color_system="standard", highlight=False).print("[red]a\x1b[2Jb")

    assert run_cli(main) == 0
    assert capsys.readouterr().out == "\x1b[31ma\\x1b[2Jb\x1b[0m\n"


NASTY = "<script>x</script> [y](javascript:z) `*_q_* | ~~s~~\n# head https://evil.example &lt;"


def test_F66_names_in_the_card_are_text(card_run, tmp_path, capsys):  # noqa: F811
    results = json.loads((card_run / "results.json").read_text())
    results |= {"model": NASTY, "dataset": NASTY, "recipe": NASTY, "environment": {NASTY: {NASTY: NASTY}}}
    results["checkpoints"]["best"]["metrics"]["bbox"][NASTY.replace("-", "")] = 1.0
    (card_run / "results.json").write_text(json.dumps(results))
    config = yaml.safe_load((card_run / "config.yaml").read_text())
    config["DATASETS"]["CLASS_NAMES"] = [NASTY.replace("\n", " "), "red_cell"]
    (card_run / "config.yaml").write_text(yaml.safe_dump(config))
    share = tmp_path / "share"
    words = [card_run, "--output", share, "--license", "mit", "--authors", NASTY]
    assert run_command("card", words) == 0
    card = (share / "README.md").read_text().split("---\n", 2)[2]
    html = MarkdownIt("gfm-like").disable("linkify").render(card)
    assert "<script" not in html
    for tag in ("<a ", "<em>", "<s>", "<strong>"):
        assert tag not in html
    assert html.count("<h1>") == 1
    assert html.count("&lt;script&gt;x&lt;/script&gt; [y](javascript:z) `*_q_* | ~~s~~ # head https") >= 6
    assert "&amp;lt;" in html
    assert "red_cell" in card
    assert "https://evil" not in card  # GitHub makes a link of it


def test_F66_markdown_tables_keep_their_columns():
    table = as_markdown([{"run": "a|b\n|c", "AP": "+0.50 [+0.10, +0.90]"}])
    assert table.splitlines()[2] == r"| a\|b \|c | +0.50 [+0.10, +0.90] |"


@pytest.mark.parametrize("cell", ["=cmd|' /C calc'!A0", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_F67_formulas_in_csv_are_text(cell):
    rows = [{"run": cell, "AP": "-1.25 (below, ±0.3)", "interval": "-0.50 [-1.00, +0.10]", "other": "-", "n": "-3.5"}]
    (row,) = csv.DictReader(io.StringIO(as_csv(rows), newline=""))
    assert row == rows[0] | {"run": f"'{cell.strip()}"}


def _in_new_process(predictor, file, sender):
    sender.send(predictor(file).scores.tolist())


def test_F68_predictor_can_be_sent_to_another_process(untrained_run, shapes):
    file = min((shapes / "val").iterdir())
    predictor = Predictor(untrained_run, device="cpu")
    wanted = predictor(file)
    copy = pickle.loads(pickle.dumps(predictor))
    assert copy(file).scores.tolist() == wanted.scores.tolist()
    assert copy(file).pred_boxes.tensor.tolist() == wanted.pred_boxes.tensor.tolist()
    assert copy.fingerprint() == predictor.fingerprint()
    assert copy._lock is not predictor._lock


@pytest.mark.slow
def test_F68_predictor_works_in_a_spawned_process(untrained_run, shapes):
    file = min((shapes / "val").iterdir())
    predictor = Predictor(untrained_run, device="cpu")
    processes = multiprocessing.get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=_in_new_process, args=(predictor, file, sender))
    child.start()
    sender.close()
    assert receiver.recv() == pytest.approx(predictor(file).scores.tolist(), abs=1e-5)
    child.join()


@pytest.mark.slow
def test_F75_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """1,500 images with 300 detections each would have taken 15 MB and more."""
    images = tmp_path / "in"
    images.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / "0.png")
    for number in range(1, 1500):
        (images / f"{number}.png").hardlink_to(images / "0.png")
    memory = []

    def predict(batch):
        memory.append(resident_bytes())
        return [boxes(300, image.shape[:2]) for image in batch]

    run_stub(tmp_path / "out", images, predict=predict, batch_size=50)
    memory.append(resident_bytes())
    assert len(memory) == 31
    assert memory[-1] - memory[6] < 4 * 2**20, [m >> 20 for m in memory[::2]]
    assert len(json.loads((tmp_path / "out/images.json").read_text())["images"]) == 1500
    part = (tmp_path / "out" / DETECTIONS_NAME).open("rb").read().count(b'"score"')
    assert part == 1500 * 300


def test_F76_a_thousand_detections_per_image_are_all_written(tmp_path, folder_of_images):
    files = PredictionFiles(Journal(tmp_path / "out"), ("bowl", "cup"), pictures=True, crops=True)
    run = PredictionRun(
        lambda images: [boxes(1000, image.shape[:2]) for image in images],
        files,
        batch_size=2,
        progress=Progress(console=Console(quiet=True), disable=True),
    )
    run.run(find_sources([str(folder_of_images / "1.png")]))
    found, _ = content(tmp_path / "out")
    assert len(found) == len({detection["score"] for detection in found}) == 1000
    assert len(list((tmp_path / "out/crops").rglob("*.jpg"))) == 1000
    assert Image.open(tmp_path / "out/pictures/1.jpg").size == (640, 480)


def test_F76_a_thousand_detections_per_image_are_evaluated(untrained_run, shapes, tmp_path):
    words = [
        "--config-file",
        untrained_run,
        "--output",
        tmp_path,
        "--val-json",
        shapes / "annotations/instances_val.json",
    ]
    more = ["--val-images", shapes / "val", "TEST.DETECTIONS_PER_IMAGE", 1000, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    assert run_command("eval", [*words, *more, "MODEL.RETINANET.NMS_THRESH_TEST", 0.999]) == 0
    found = json.loads(next(tmp_path.rglob("coco_instances_results.json")).read_text())
    per_image = np.unique([detection["image_id"] for detection in found], return_counts=True)[1]
    assert per_image.max() > 300
    assert "AR1000" in (tmp_path / "evaluation.json").read_text()


class _Squares(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"image": torch.full((3, 32, 32), index, dtype=torch.uint8), "scale": torch.tensor(index / 2)}


def test_F77_workers_do_not_need_shared_memory(monkeypatch):
    """The worker dropped the batch with a traceback, and the training process waited forever."""

    def no_space(*_: object):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    def read():
        signal.alarm(60)
        monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", no_space)
        loader = WorkerLoader(_Squares(), 2, num_workers=2, worker_init_fn=start_worker, collate_fn=list)
        return [(s["image"].float().mean().item(), s["scale"].item(), s["image"].shape) for b in loader for s in b]

    found, _ = in_child(read)
    assert found == [(index, index / 2, (3, 32, 32)) for index in range(4)]


@pytest.mark.slow
def test_F78_read_only_installation_works_for_a_user_without_rights(repo_root, untrained_run, shapes, tiny_words):
    """The package, the configs and the home folder cannot be written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        installed, work, as_user = folder / "installed", folder / "work", []
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repo_root / "pvt_det", installed / "pvt_det", ignore=skipped)
        shutil.copytree(repo_root / "configs", installed / "configs")
        shutil.copytree(untrained_run, folder / "run")
        shutil.copytree(shapes, folder / "shapes")
        work.mkdir()
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        work.chmod(0o777)
        code = (
            "import json, sys; from pvt_det.utils.cli import run_cli; from pvt_det.cli.start import start\n"
            "for name, *words in json.loads(sys.argv[1]):\n"
            "    code = run_cli(lambda: start(name, words, name))\n"
            "    if code: sys.exit(code)"
        )
        predict = [folder / "shapes/val", "--config-file", folder / "run", "--output", work / "out", "--device", "cpu"]
        train = [
            "--config-file",
            installed / CONFIG,
            *tiny_words(work / "trained", SOLVER__MAX_ITER=1, SOLVER__STEPS=[]),
        ]
        commands = [list(map(str, words)) for words in (["predict", *predict], ["train", *train])]
        if os.getuid() == 0:
            # Otherwise root may write everywhere. Python may be in the home folder of root, so it must stay root.
            as_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
        result = subprocess.run(
            [*as_user, sys.executable, "-c", code, json.dumps(commands)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "HOME": str(folder / "nowhere")},
            cwd=work,
            capture_output=True,
            text=True,
        )
        try:
            assert result.returncode == 0, result.stderr
            assert "in 3 images: " in result.stdout
            assert (work / "trained/model_final.pth").exists()
            assert "Traceback" not in result.stderr
        finally:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o755)


def read_only(*_: object, **__: object):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "found")


def test_F79_file_system_that_becomes_read_only_ends_predict_with_a_message(
    folder_of_images, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "out"
    saves = iter(range(100))

    def predict(images):
        if next(saves) == 1:
            monkeypatch.setattr("pvt_det.inference.files.write_picture", read_only)
        return [boxes(3, image.shape[:2]) for image in images]

    code = run_cli(lambda: len(run_stub(output, folder_of_images, predict=predict, crops=True)))
    assert code == 2
    message = capsys.readouterr().err
    assert message.startswith(
        f"error: found cannot be written: {os.strerror(errno.EROFS)}. The predictions of 2 images"
    )
    assert Journal(output).images == 2


def test_F79_file_system_that_becomes_read_only_ends_training_at_its_save(command, monkeypatch, tmp_path):
    """Logs and metrics are dropped; a checkpoint that cannot be saved ends the run with the previous one intact."""
    from pvt_det.checkpoint import CheckpointStore

    save, calls = CheckpointStore.save, iter(range(10))

    def fail_later(self, *args, **options):
        if next(calls) > 0:
            monkeypatch.setattr("torch.save", read_only)
        return save(self, *args, **options)

    monkeypatch.setattr(CheckpointStore, "save", fail_later)
    ending = command(SOLVER__MAX_ITER=3, SOLVER__STEPS=[], SOLVER__CHECKPOINT_PERIOD=1)
    assert ending.code == 4
    assert "Earlier checkpoints are intact" in ending.error
    monkeypatch.undo()
    store = CheckpointStore(tmp_path / "run")
    assert store.load(store.latest())["iteration"] == 0


TOKEN = "hf_" + "aB3" * 12


def test_F80_token_is_in_no_output_of_push(card_run, tmp_path, monkeypatch, capsys, caplog):  # noqa: F811
    from huggingface_hub import HfApi

    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def create_repo(self, repo_id, **options):
        logging.getLogger("pvt_det").warning("header %s", f"Authorization: Bearer {self.token or TOKEN}")
        raise RuntimeError(f"Illegal header value b'Bearer {TOKEN}'")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    words = [card_run, "--output", tmp_path / "share", "--push", "ada/cells"]
    assert run_cli(lambda: run_command("card", words)) == 2
    printed = capsys.readouterr()
    assert "error: --push ada/cells: Illegal header value b'Bearer …'" in printed.err
    assert TOKEN not in printed.err + printed.out
    assert not any(TOKEN.encode() in path.read_bytes() for path in (tmp_path / "share").iterdir())


def test_F80_token_is_not_in_the_log_of_a_run(tmp_path, capsys):
    from pvt_det.utils.logs import run_logging

    with run_logging(tmp_path, 0, Console()):
        try:
            raise DataError(f"https://hub/x {TOKEN}")
        except DataError:
            logging.getLogger("pvt_det").exception("failed with %s", TOKEN)
    assert "hf_…" in (tmp_path / "log.txt").read_text()
    assert TOKEN not in (tmp_path / "log.txt").read_text() + capsys.readouterr().out


ROTATIONS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def test_F81_rotation_by_exif_does_not_change_the_evaluation(untrained_run, shapes, tmp_path):
    truth = json.loads((shapes / "annotations/instances_val.json").read_text())
    folders = {name: tmp_path / name for name in ("upright", "rotated")}
    for folder in folders.values():
        folder.mkdir()
    for record, (orientation, stored) in zip(truth["images"], ROTATIONS.items(), strict=True):
        image = Image.open(shapes / "val" / record["file_name"]).convert("RGB").crop((0, 0, 64, 40))
        record |= {"file_name": f"{record['id']}.png", "height": 40, "width": 64}
        image.save(folders["upright"] / record["file_name"])
        exif = Image.Exif()
        exif[274] = orientation
        image.transpose(stored).save(folders["rotated"] / record["file_name"], exif=exif)
    truth["annotations"] = [a for a in truth["annotations"] if a["bbox"][1] + a["bbox"][3] < 40]
    assert truth["annotations"]
    (tmp_path / "val.json").write_text(json.dumps(truth))
    results = {}
    for name, folder in folders.items():
        words = ["--config-file", untrained_run, "--output", tmp_path / f"run {name}", "--val-images", folder]
        assert run_command("eval", [*words, "--val-json", tmp_path / "val.json"]) == 0
        found = json.loads(next((tmp_path / f"run {name}").rglob("coco_instances_results.json")).read_text())
        metrics = json.loads((tmp_path / f"run {name}/evaluation.json").read_text())["checkpoints"]["evaluated"][
            "metrics"
        ]
        results[name] = found, metrics
    assert results["rotated"] == results["upright"]
    assert len(results["upright"][0]) > 10
