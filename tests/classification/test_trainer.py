"""The training loop: exact resume, accumulation, broken images, and files that feed detection."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pvt_det.classification import run as classification_run
from pvt_det.classification.card import write_card
from pvt_det.classification.options import Options
from pvt_det.classification.trainer import LAST_NAME, Trainer
from pvt_det.cli.start import start
from pvt_det.errors import CheckpointError, ConfigError, DataError, Interrupted, NumericError
from pvt_det.inference.base import config_file
from pvt_det.models import create_model
from pvt_det.utils.distributed import Process
from pvt_det.weights import load_pretrained, save_safetensors
from tests.data.imagenet.fakes import class_folders

CPU = Process(torch.device("cpu"))


class StopAfter:
    """A wish to stop that comes with the n-th question for it."""

    def __init__(self, asked: int) -> None:
        self._left = asked

    @property
    def signal_name(self) -> str | None:
        self._left -= 1
        return "SIGTERM" if self._left < 0 else None


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("cls") / "set", train=9, val=4)


def _options(data: Path, output: Path, **changes) -> Options:
    """Everything random is on; 27 images, 6 updates of 4 in an epoch."""
    base = Options(
        model="pvt_v2_b0", data=str(data), output=str(output), img_size=32, epochs=2, batch_size=4, warmup_epochs=0.5,
        lr=1e-3, lr_batch=0, drop_path_rate=0.2, clip_grad=1.0, ema_decay=0.9, workers=0, log_every=1, device="cpu",
        amp="none",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def _rows(output: Path) -> list[dict]:
    timed = ("images_per_s", "waiting")
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def _trainer(options: Options, stop) -> Trainer:
    Path(options.output).mkdir(parents=True, exist_ok=True)
    images, validation = classification_run._open_data(options, CPU)
    parts = classification_run.build_parts(options, CPU, images, validation)
    return Trainer(options, parts, CPU, stop, "resume")


def _stopped_and_resumed(options: Options, asked: int, **changes) -> None:
    with pytest.raises(Interrupted, match="SIGTERM in epoch"):
        _trainer(options, StopAfter(asked)).train()
    classification_run.train(dataclasses.replace(options, resume="auto", **changes), CPU, "resume")


def _end_state(options: Options) -> dict:
    return torch.load(Path(options.output) / "model_last.pth", weights_only=True)


def _equal(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory) -> Options:
    options = _options(data, tmp_path_factory.mktemp("whole"))
    classification_run.train(options, CPU, "resume")
    return options


@pytest.mark.parametrize(
    ("asked", "workers"),
    [(3, 0), (9, 2), (6, 1)],
    ids=["first epoch", "second epoch, other workers", "in the evaluation"],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(whole_run, data, tmp_path, asked, workers):
    options = _options(data, tmp_path)
    _stopped_and_resumed(options, asked, workers=workers)
    assert _rows(tmp_path) == _rows(Path(whole_run.output))
    ours, theirs = _end_state(options), _end_state(whole_run)
    assert ours.pop("options") != theirs.pop("options")  # folder and workers
    assert _equal(ours, theirs)


def test_resume_restores_the_fp16_scaler(tmp_path):
    """With accumulation and a log interval that the stop cuts in two."""
    data = class_folders(tmp_path / "set", train=5, val=1)
    common = {"amp": "fp16", "accumulate_steps": 2, "epochs": 1, "log_every": 2, "channels_last": True}
    whole, cut = (_options(data, tmp_path / name, **common) for name in ("whole", "cut"))
    classification_run.train(whole, CPU, "resume")
    _stopped_and_resumed(cut, 1)
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")
    ours, theirs = _end_state(cut), _end_state(whole)
    # Gradients of the first updates overflow, so that the scale has come down from its start.
    assert ours["scaler"]["scale"] < 65536
    assert _equal(ours["scaler"], theirs["scaler"])
    assert _equal(ours["model"], theirs["model"])


def test_rows_that_a_killed_run_left_are_taken_back(data, whole_run, tmp_path):
    options = _options(data, tmp_path)
    with pytest.raises(Interrupted):
        _trainer(options, StopAfter(3)).train()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 0, "update": 5, "loss": 9.0}) + '\n{"epoch": 0, "upd')
    classification_run.train(dataclasses.replace(options, resume="auto"), CPU, "resume")
    assert _rows(tmp_path) == _rows(Path(whole_run.output))


def test_accumulation_gives_the_gradient_of_the_whole_batch(data, tmp_path):
    plain = {"mixup": 0.0, "cutmix": 0.0, "erase_prob": 0.0, "drop_path_rate": 0.0, "epochs": 1, "batch_size": 6}
    losses = []
    for steps in (1, 3):
        options = _options(data, tmp_path / str(steps), accumulate_steps=steps, **plain)
        classification_run.train(options, CPU, "resume")
        losses.append([row["loss"] for row in _rows(Path(options.output)) if "loss" in row])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_recomputing_stages_changes_nothing(data, tmp_path, whole_run):
    options = _options(data, tmp_path, checkpoint_stages="1,3", epochs=2)
    trainer = _trainer(options, StopAfter(3))
    assert trainer.parts.model.checkpoint_stages == {1, 3}
    with pytest.raises(Interrupted):
        trainer.train()
    expected = [row["loss"] for row in _rows(Path(whole_run.output))[:4]]
    assert [row["loss"] for row in _rows(tmp_path)] == pytest.approx(expected, rel=1e-5)


def test_the_moving_average_is_what_is_evaluated_and_kept(whole_run):
    state = _end_state(whole_run)
    with safetensors.safe_open(Path(whole_run.output) / "best.safetensors", "pt") as file:
        metadata = file.metadata()
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert json.loads(metadata["classes"]) == ["ant", "bee", "cat"]
    assert (metadata["model"], metadata["img_size"]) == ("pvt_v2_b0", "32")
    best = max((row for row in _rows(Path(whole_run.output)) if "top1" in row), key=lambda row: row["top1"])
    assert float(metadata["top1"]) == pytest.approx(best["top1"], abs=1e-3)
    assert json.loads((Path(whole_run.output) / "classes.json").read_text()) == ["ant", "bee", "cat"]
    if best["epoch"] == 1:
        averaged = {key.removeprefix("module."): value for key, value in state["ema"].items() if key != "n_averaged"}
        assert _equal(kept, averaged)
    assert not _equal(kept, state["model"])


def test_the_result_loads_into_classifier_and_trunk(whole_run):
    source = Path(whole_run.output) / "best.safetensors"
    classifier = create_model("pvt_v2_b0", 3, img_size=32)
    assert not load_pretrained(classifier, source).new
    trunk = create_model("pvt_v2_b0", 0)
    report = load_pretrained(trunk, source)
    assert not report.new
    assert torch.equal(trunk.patch_embed1.proj.weight, classifier.patch_embed1.proj.weight)
    # The last checkpoint works the same way.
    assert not load_pretrained(classifier, Path(whole_run.output) / "model_last.pth").new


def test_a_page_about_the_model_lies_beside_it(whole_run, data, tmp_path):
    folder = Path(whole_run.output)
    card, best = (folder / "README.md").read_text(), json.loads((folder / "results.json").read_text())["metrics"]
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["pipeline_tag"], header["tags"]) == ("image-classification", ["pvt", "image-classification"])
    (measured,) = header["model-index"][0]["results"]
    top1, top5 = (best["classification"][name] for name in ("top1", "top5"))
    assert [metric["value"] for metric in measured["metrics"]] == [round(top1, 2), round(top5, 2)]
    for told in (
        "# pvt_v2_b0 classifier\n",
        f"| classification | {top1:.1f} | {top5:.1f} |",
        "- train: set/train, 27 images",
        "- val: set/val, 12 images",
        "- classes: ant, bee, cat",
        "- recipe: adamw lr 0.001, batch 4, 2 epochs, 32 pixels",
        "- seed: 0",
        f"torch {torch.__version__.split('+')[0]}",
        "- of these weights: not stated",
    ):
        assert told in card, told
    assert str(data.parent) not in card
    assert str(folder) not in card
    loads = card.split("```python\n")[1].split("```")[0].replace('"best', f'"{folder}/best')
    exec(loads, scope := {})
    assert scope["model"].head.out_features == 3
    source = classification_run.open_images(data, "val")
    (tmp_path / "results.json").write_text((folder / "results.json").read_text())
    (tmp_path / "README.md").write_text("# My notes\n")
    write_card(dataclasses.replace(whole_run, output=str(tmp_path)), source, source)
    assert (tmp_path / "README.md").read_text() == "# My notes\n"


def test_a_run_becomes_a_folder_to_share(whole_run, data, tmp_path):
    run, output = Path(whole_run.output), tmp_path / "share"
    start("card", [str(run), "--output", str(output), "--license", "cc0-1.0"], "pvt-det card")
    names = ["README.md", "classes.json", "model.safetensors", "options.yaml"]
    assert sorted(path.name for path in output.iterdir()) == names
    shared, best = (safetensors.torch.load_file(f) for f in (output / names[2], run / "best.safetensors"))
    assert shared.keys() == best.keys()
    assert all(torch.equal(shared[name], best[name]) for name in best)
    card = (output / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc0-1.0"
    assert "- train: set/train\n" in card
    assert "--eval-only --weights model.safetensors\n" in card
    assert str(data.parent) not in card + (output / "options.yaml").read_text()
    # What a user of it types: the classes come from the file.
    again = _options(data, tmp_path / "out", weights=str(output / names[2]), eval_only=True)
    top1 = json.loads((run / "results.json").read_text())["metrics"]["classification"]["top1"]
    assert classification_run.evaluate_only(again, CPU).top1 == pytest.approx(top1)
    with pytest.raises(ConfigError, match="is of a classifier, not of a detector or segmentor: expected a run"):
        config_file(run)
    with pytest.raises(ConfigError, match="is the run's own folder"):
        start("card", [str(run), "--output", str(run)], "pvt-det card")


def test_the_result_feeds_a_detector(repo_root, whole_run):
    detection = pytest.importorskip("detectron2.modeling")
    from pvt_det.config import load_config

    overrides = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", f"{whole_run.output}/best.safetensors"]
    cfg = load_config(repo_root / "configs/retinanet_pvt_v2_b0.yaml", overrides)
    detector = detection.build_model(cfg)
    report = load_pretrained(detector, cfg.MODEL.WEIGHTS)
    trunk = {key for key in detector.state_dict() if key.startswith("backbone.bottom_up.")}
    assert set(report.loaded) == trunk
    assert set(report.dropped) == {"head"}


def test_a_second_run_in_the_folder_is_refused(whole_run):
    with pytest.raises(ConfigError, match="holds a run already"):
        classification_run.train(whole_run, CPU, "resume")
    with pytest.raises(ConfigError, match=r"epochs was 2 and is 5"):
        classification_run.train(dataclasses.replace(whole_run, resume="auto", epochs=5), CPU, "resume")


def test_other_classes_are_refused(whole_run, tmp_path):
    other = class_folders(tmp_path / "set", classes=("ant", "bee", "dog"))
    with pytest.raises(DataError, match="trained on the classes ant, bee, cat, the images have ant, bee, dog: give"):
        classification_run.train(dataclasses.replace(whole_run, resume="auto", data=str(other)), CPU, "resume")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "batch_size = 64 exceeds the 27 images"),
        ({"batch_size": 6, "accumulate_steps": 4}, "batch_size = 6 does not divide into 4 batches"),
        ({"batch_size": 6, "accumulate_steps": 2}, "of an even number of images for mixup"),
        ({"data": ""}, "--data DIR"),
    ],
)
def test_options_that_do_not_fit(data, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        classification_run.train(_options(**{"data": data, "output": tmp_path, **changes}), CPU, "resume")


def test_broken_images_are_named_up_to_the_limit(tmp_path, caplog):
    root = class_folders(tmp_path / "set", train=9, val=4)
    for name in ("train/bee/003.jpg", "train/cat/001.jpg", "val/ant/002.jpg"):
        (root / name).write_bytes(b"\xff\xd8 no image")
    options = _options(root, tmp_path / "out", epochs=1, repeats=1, batch_size=2, max_broken=2)
    with caplog.at_level("WARNING", "pvt_det"):
        classification_run.train(options, CPU, "resume")
    for name in ("train/bee/003.jpg", "train/cat/001.jpg", "val/ant/002.jpg"):
        assert name in caplog.text
    with pytest.raises(DataError, match=r"2 images are broken, and max_broken allows 1: .*jpg \(no image"):
        classification_run.train(dataclasses.replace(options, max_broken=1, output=str(tmp_path / "b")), CPU, "resume")
    with pytest.raises(DataError, match=r"1 images are broken, and max_broken allows 0: .*val/ant/002.jpg"):
        _evaluate_weights(root, tmp_path, {}, max_broken=0)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    with pytest.raises(NumericError, match=r"the loss is nan in the updates up to \d+ .*Lower --lr"):
        classification_run.train(_options(data, tmp_path, lr=1e20, clip_grad=0.0, warmup_epochs=0.0), CPU, "resume")


def test_weights_that_are_not_finite_are_not_saved(data, tmp_path):
    trainer = _trainer(_options(data, tmp_path), StopAfter(1000))
    trainer.save()
    saved = (tmp_path / LAST_NAME).read_bytes()
    with torch.no_grad():
        trainer.parts.model.head.bias[0] = float("inf")
    with pytest.raises(NumericError, match=r"head\.bias holds NaN or infinity"):
        trainer.save()
    assert (tmp_path / LAST_NAME).read_bytes() == saved


def _evaluate_weights(root: Path, folder: Path, metadata: dict[str, str], **changes):
    torch.manual_seed(3)
    model = create_model("pvt_v2_b0", 3, img_size=32)
    save_safetensors(folder / "w.safetensors", model.state_dict(), metadata)
    options = _options(root, folder / "none", eval_only=True, weights=str(folder / "w.safetensors"), **changes)
    return classification_run.evaluate_only(options, CPU)


def test_accuracy_on_a_hand_made_set(tmp_path):
    """Labels are set against what the network says, computed here by Pillow and NumPy alone."""
    root = class_folders(tmp_path / "set", val=4)
    torch.manual_seed(3)
    model = create_model("pvt_v2_b0", 3, img_size=32).eval()
    said = {}
    for path in sorted((root / "val").glob("*/*.jpg")):
        # 48 × 40: the short side becomes 32 / 0.8 = 40, so that nothing is resized; then the centre.
        with Image.open(path) as image:
            pixels = np.asarray(image.crop((8, 4, 40, 36)), dtype=np.float32) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        said[path] = (int(logits.argmax()), logits[0].log_softmax(0).tolist())
    right = 0
    loss = 0.0
    for number, (path, (guess, log_p)) in enumerate(said.items()):
        label = guess if number < 5 else (guess + 1) % 3
        right += number < 5
        loss -= log_p[label]
        path.rename(path.parents[1] / ("ant", "bee", "cat")[label] / f"new{number}.jpg")
    result = _evaluate_weights(root, tmp_path, {}, crop_pct=0.8, eval_batch_size=5)
    assert (result.top1, result.top5, result.images) == (pytest.approx(100 * right / 12), 100.0, 12)
    assert result.loss == pytest.approx(loss / 12, rel=1e-4)
    # Weights that bring a class index of their own are evaluated by it: here every label changes.
    turned = _evaluate_weights(root, tmp_path, {"classes": '["cat", "ant", "bee"]'}, crop_pct=0.8)
    assert turned.top1 != pytest.approx(result.top1)
    assert math.isfinite(turned.loss)


def test_weights_for_other_classes_are_refused(tmp_path):
    root = class_folders(tmp_path / "set", classes=("ant", "bee"))
    with pytest.raises(CheckpointError, match="has no classifier for the 2 classes"):
        _evaluate_weights(root, tmp_path, {})


def test_tensorboard_holds_the_curves(whole_run):
    events = EventAccumulator(str(Path(whole_run.output) / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([row["loss"] for row in _rows(Path(whole_run.output)) if "loss" in row], rel=1e-6)
