"""The training loop: bit-identical resume, gradient accumulation, broken images, and weights for detectors."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pvt_det.classification import (
    Accuracy,
    ClassificationTrainer,
    TrainConfig,
    evaluate,
    start_run,
    train,
)
from pvt_det.cli.start import start
from pvt_det.errors import CheckpointError, ConfigError, DataError, Interrupted, NumericError
from pvt_det.inference.base import config_file
from pvt_det.models import create_model
from pvt_det.run_folder import CLASSIFIER_LAST_NAME
from pvt_det.utils import signals
from pvt_det.utils.distributed import Process
from pvt_det.weights import load_pretrained, save_safetensors
from tests.data.imagenet.fakes import class_folders


class StoppedAfter(ClassificationTrainer):
    """Receives SIGTERM after an update."""

    def __init__(self, cfg: TrainConfig, process: Process, last_update: int) -> None:
        super().__init__(cfg, process)
        self._last_update = last_update

    def after_step(self) -> None:
        if self.update == self._last_update:
            signal.raise_signal(signal.SIGTERM)
        super().after_step()


class StoppedInEvaluation(ClassificationTrainer):
    """Receives Ctrl-C at the beginning of the evaluation."""

    def evaluate(self) -> Accuracy:
        signal.raise_signal(signal.SIGINT)
        return super().evaluate()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return class_folders(tmp_path_factory.mktemp("cls") / "set", train=9, val=4)


def _config(data: Path, output: Path, **changes) -> TrainConfig:
    """Enable all random augmentations. The 27 images give 6 updates of 4 images per epoch."""
    base = TrainConfig(
        model="pvt_v2_b0", data=str(data), output=str(output), img_size=32, epochs=2, batch_size=4, warmup_epochs=0.5,
        lr=1e-3, lr_batch=0, drop_path_rate=0.2, clip_grad=1.0, ema_decay=0.9, workers=0, log_every=1, device="cpu",
        amp="none",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def _rows(output: Path) -> list[dict]:
    timed = ("images_per_s", "waiting")
    lines = (output / "metrics.json").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def read_top1(folder: Path) -> float:
    checkpoints = json.loads((folder / "results.json").read_text())["checkpoints"]
    return checkpoints["best"]["metrics"]["classification"]["top1"]


def _train(cfg: TrainConfig) -> None:
    with start_run(cfg) as process:
        train(cfg, process)


def _evaluate(cfg: TrainConfig) -> Accuracy:
    with start_run(cfg) as process:
        return evaluate(cfg, process)


def _stop(cfg: TrainConfig, update: int | None) -> None:
    """Train until an update, or until the first evaluation if `update` is None."""
    with (
        pytest.raises(Interrupted, match=r"SIG(TERM|INT) in epoch .*\. Resume with: the same command with --resume$"),
        start_run(cfg) as process,
    ):
        (StoppedInEvaluation(cfg, process) if update is None else StoppedAfter(cfg, process, update)).train()


def _stopped_and_resumed(cfg: TrainConfig, update: int | None, **changes) -> None:
    _stop(cfg, update)
    _train(dataclasses.replace(cfg, resume=True, **changes))


def _end_state(cfg: TrainConfig) -> dict:
    return torch.load(Path(cfg.output) / "model_last.pth", weights_only=True)


def _equal(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory) -> TrainConfig:
    cfg = _config(data, tmp_path_factory.mktemp("whole"))
    _train(cfg)
    return cfg


@pytest.mark.parametrize(
    ("update", "workers"),
    [(4, 0), (9, 2), (None, 1)],
    ids=["first epoch", "second epoch, different workers", "during evaluation"],
)
def test_resumed_run_is_bit_identical(whole_run, data, tmp_path, update, workers, monkeypatch):
    notices = []
    monkeypatch.setattr(signals, "show_notice", notices.append)
    cfg = _config(data, tmp_path)
    _stopped_and_resumed(cfg, update, workers=workers)
    # Ctrl-C during the evaluation, SIGTERM otherwise.
    assert notices == ([] if update else ["Saving after this update; press Ctrl-C again to stop now."])
    assert _rows(tmp_path) == _rows(Path(whole_run.output))
    resumed, uninterrupted = _end_state(cfg), _end_state(whole_run)
    assert resumed.pop("options") != uninterrupted.pop("options")  # folder and workers
    assert _equal(resumed, uninterrupted)


def test_resume_restores_the_fp16_scaler(tmp_path):
    """Use accumulation, and stop in the middle of a log interval."""
    data = class_folders(tmp_path / "set", train=5, val=1)
    common = {"amp": "fp16", "accumulate_steps": 2, "epochs": 1, "log_every": 2, "channels_last": True}
    whole, cut = (_config(data, tmp_path / name, **common) for name in ("whole", "cut"))
    _train(whole)
    _stopped_and_resumed(cut, 1)
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")
    resumed, uninterrupted = _end_state(cut), _end_state(whole)
    # The gradients of the first updates overflow, which lowers the scale from its initial value.
    assert resumed["scaler"]["scale"] < 65536
    assert _equal(resumed["scaler"], uninterrupted["scaler"])
    assert _equal(resumed["model"], uninterrupted["model"])


def test_resume_removes_metrics_after_the_checkpoint(data, whole_run, tmp_path):
    cfg = _config(data, tmp_path)
    _stop(cfg, 4)
    with (tmp_path / "metrics.json").open("a") as file:
        file.write(json.dumps({"epoch": 0, "update": 5, "loss": 9.0}) + '\n{"epoch": 0, "upd')
    _train(dataclasses.replace(cfg, resume=True))
    assert _rows(tmp_path) == _rows(Path(whole_run.output))


def test_accumulation_matches_the_whole_batch(data, tmp_path):
    plain = {"mixup": 0.0, "cutmix": 0.0, "erase_prob": 0.0, "drop_path_rate": 0.0, "epochs": 1, "batch_size": 6}
    losses = []
    for steps in (1, 3):
        cfg = _config(data, tmp_path / str(steps), accumulate_steps=steps, **plain)
        _train(cfg)
        losses.append([row["loss"] for row in _rows(Path(cfg.output)) if "loss" in row])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_activation_checkpointing_keeps_the_losses(data, tmp_path, whole_run):
    cfg = _config(data, tmp_path, checkpoint_stages="1,3", epochs=2)
    with start_run(cfg) as process:
        trainer = StoppedAfter(cfg, process, 4)
        assert trainer.state.model.checkpoint_stages == {1, 3}
        with pytest.raises(Interrupted):
            trainer.train()
    expected = [row["loss"] for row in _rows(Path(whole_run.output))[:4]]
    assert [row["loss"] for row in _rows(tmp_path)] == pytest.approx(expected, rel=1e-5)


def test_moving_average_is_evaluated_and_saved(whole_run):
    state = _end_state(whole_run)
    with safetensors.safe_open(Path(whole_run.output) / "model_best.safetensors", "pt") as file:
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


def test_weights_load_into_classifier_and_trunk(whole_run):
    source = Path(whole_run.output) / "model_best.safetensors"
    classifier = create_model("pvt_v2_b0", 3, img_size=32)
    assert not load_pretrained(classifier, source).new
    trunk = create_model("pvt_v2_b0", 0)
    report = load_pretrained(trunk, source)
    assert not report.new
    assert torch.equal(trunk.patch_embed1.proj.weight, classifier.patch_embed1.proj.weight)
    # The last checkpoint loads too.
    assert not load_pretrained(classifier, Path(whole_run.output) / "model_last.pth").new


def test_model_card_is_written_next_to_the_weights(whole_run, data, tmp_path):
    folder = Path(whole_run.output)
    card, results = (folder / "README.md").read_text(), json.loads((folder / "results.json").read_text())
    best = results["checkpoints"]["best"]["metrics"]
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["pipeline_tag"], header["tags"]) == ("image-classification", ["pvt", "image-classification"])
    (measured,) = header["model-index"][0]["results"]
    top1, top5 = (best["classification"][name] for name in ("top1", "top5"))
    assert [metric["value"] for metric in measured["metrics"]] == [round(top1, 2), round(top5, 2)]
    for line in (
        "# pvt_v2_b0 classifier\n",
        f"| classification | {top1:.1f} | {top5:.1f} |",
        "- train: set/train, 27 images",
        "- val: set/val, 12 images",
        "- classes: ant, bee, cat",
        "- recipe: adamw lr 0.001, batch 4, 2 epochs, 32 pixels",
        "- seed: 0",
        f"torch {torch.__version__.split('+')[0]}",
        "- weights: not stated",
    ):
        assert line in card, line
    assert str(data.parent) not in card
    assert str(folder) not in card
    code = card.split("```python\n")[1].split("```")[0].replace('"model_best', f'"{folder}/model_best')
    exec(code, scope := {})
    assert scope["model"].head.out_features == 3
    finished = dataclasses.replace(whole_run, output=str(tmp_path), resume=True)
    for name in ("model_last.pth", "results.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "README.md").write_text("# My notes\n")
    _train(finished)
    assert (tmp_path / "README.md").read_text() == "# My notes\n"


def test_card_command_writes_a_folder_to_share(whole_run, data, tmp_path):
    run, output = Path(whole_run.output), tmp_path / "share"
    start("card", [str(run), "--output", str(output), "--license", "cc0-1.0"], "pvt-det card")
    names = ["README.md", "classes.json", "model.safetensors", "options.yaml"]
    assert sorted(path.name for path in output.iterdir()) == names
    shared, best = (safetensors.torch.load_file(f) for f in (output / names[2], run / "model_best.safetensors"))
    assert shared.keys() == best.keys()
    assert all(torch.equal(shared[name], best[name]) for name in best)
    card = (output / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc0-1.0"
    assert "- train: set/train\n" in card
    assert "--eval-only --weights model.safetensors\n" in card
    assert str(data.parent) not in card + (output / "options.yaml").read_text()
    # Evaluate the shared weights. The class names come from the file.
    again = _config(data, tmp_path / "out", weights=str(output / names[2]), eval_only=True)
    top1 = read_top1(run)
    assert _evaluate(again).top1 == pytest.approx(top1)
    with pytest.raises(ConfigError, match=r"belongs to a classifier, not a detector or segmentor\. Expected a run"):
        config_file(run)
    with pytest.raises(ConfigError, match="is the run folder itself"):
        start("card", [str(run), "--output", str(run)], "pvt-det card")


def test_weights_load_into_a_detector(repo_root, whole_run):
    detection = pytest.importorskip("detectron2.modeling")
    from pvt_det.config import load_config

    overrides = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", f"{whole_run.output}/model_best.safetensors"]
    cfg = load_config(repo_root / "configs/retinanet_pvt_v2_b0.yaml", overrides)
    detector = detection.build_model(cfg)
    report = load_pretrained(detector, cfg.MODEL.WEIGHTS)
    trunk = {key for key in detector.state_dict() if key.startswith("backbone.bottom_up.")}
    assert set(report.loaded) == trunk
    assert set(report.dropped) == {"head"}


def test_second_run_in_the_same_folder_is_refused(whole_run):
    with pytest.raises(ConfigError, match="already contains a run"):
        _train(whole_run)
    with pytest.raises(ConfigError, match=r"epochs was 2 and is 5"):
        _train(dataclasses.replace(whole_run, resume=True, epochs=5))


def test_resume_with_different_classes_is_refused(whole_run, tmp_path):
    other = class_folders(tmp_path / "set", classes=("ant", "bee", "dog"))
    with pytest.raises(DataError, match="trained on the classes ant, bee, cat, but the images have ant, bee, dog"):
        _train(dataclasses.replace(whole_run, resume=True, data=str(other)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "batch_size = 64 exceeds the 27 images"),
        ({"batch_size": 6, "accumulate_steps": 4}, "batch_size = 6 cannot be split into 4 equal batches"),
        ({"batch_size": 6, "accumulate_steps": 2}, "with an even number of images for mixup"),
        ({"data": ""}, "--data DIR"),
    ],
)
def test_incompatible_options_are_refused(data, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        _train(_config(**{"data": data, "output": tmp_path, **changes}))


def test_broken_images_are_named_and_limited(tmp_path, capsys):
    root = class_folders(tmp_path / "set", train=9, val=4)
    for name in ("train/bee/003.jpg", "train/cat/001.jpg", "val/ant/002.jpg"):
        (root / name).write_bytes(b"\xff\xd8 no image")
    cfg = _config(root, tmp_path / "out", epochs=1, repeats=1, batch_size=2, max_broken=2)
    _train(cfg)
    printed = capsys.readouterr().out
    for name in ("train/bee/003.jpg", "train/cat/001.jpg", "val/ant/002.jpg"):
        assert name in printed
    with pytest.raises(DataError, match=r"2 images are broken, and max_broken allows 1: .*jpg \(not an image"):
        _train(dataclasses.replace(cfg, max_broken=1, output=str(tmp_path / "b")))
    with pytest.raises(DataError, match=r"1 image is broken, and max_broken allows 0: .*val/ant/002.jpg"):
        _evaluate_weights(root, tmp_path, {}, max_broken=0)


def test_non_finite_loss_stops_the_run(data, tmp_path):
    with pytest.raises(NumericError, match=r"The loss is nan in the updates up to \d+ .*Lower --lr"):
        _train(_config(data, tmp_path, lr=1e20, clip_grad=0.0, warmup_epochs=0.0))


def test_non_finite_weights_are_not_saved(data, tmp_path):
    cfg = _config(data, tmp_path)
    with start_run(cfg) as process:
        trainer = ClassificationTrainer(cfg, process)
        trainer.save()
        saved = (tmp_path / CLASSIFIER_LAST_NAME).read_bytes()
        with torch.no_grad():
            trainer.state.model.head.bias[0] = float("inf")
        with pytest.raises(NumericError, match=r"head\.bias contains NaN or infinity"):
            trainer.save()
    assert (tmp_path / CLASSIFIER_LAST_NAME).read_bytes() == saved


def _evaluate_weights(root: Path, folder: Path, metadata: dict[str, str], **changes):
    torch.manual_seed(3)
    model = create_model("pvt_v2_b0", 3, img_size=32)
    save_safetensors(folder / "w.safetensors", model.state_dict(), metadata)
    cfg = _config(root, folder / "none", eval_only=True, weights=str(folder / "w.safetensors"), **changes)
    return _evaluate(cfg)


def test_accuracy_matches_a_reference_implementation(tmp_path):
    """Compare with labels chosen relative to the model's predictions, preprocessed with Pillow and NumPy only."""
    root = class_folders(tmp_path / "set", val=4)
    torch.manual_seed(3)
    model = create_model("pvt_v2_b0", 3, img_size=32).eval()
    predictions = {}
    for path in sorted((root / "val").glob("*/*.jpg")):
        # 48×40 pixels: the short side should become 32 / 0.8 = 40, so nothing is resized before the center crop.
        with Image.open(path) as image:
            pixels = np.asarray(image.crop((8, 4, 40, 36)), dtype=np.float32) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
        predictions[path] = (int(logits.argmax()), logits[0].log_softmax(0).tolist())
    correct = 0
    loss = 0.0
    for number, (path, (guess, log_p)) in enumerate(predictions.items()):
        label = guess if number < 5 else (guess + 1) % 3
        correct += number < 5
        loss -= log_p[label]
        path.rename(path.parents[1] / ("ant", "bee", "cat")[label] / f"new{number}.jpg")
    result = _evaluate_weights(root, tmp_path, {}, crop_pct=0.8, eval_batch_size=5)
    assert (result.top1, result.top5, result.images) == (pytest.approx(100 * correct / 12), 100.0, 12)
    assert result.loss == pytest.approx(loss / 12, rel=1e-4)
    # Class names in the weights define the class order. This order changes every label.
    permuted = _evaluate_weights(root, tmp_path, {"classes": '["cat", "ant", "bee"]'}, crop_pct=0.8)
    assert permuted.top1 != pytest.approx(result.top1)
    assert math.isfinite(permuted.loss)


def test_weights_for_different_classes_are_refused(tmp_path):
    root = class_folders(tmp_path / "set", classes=("ant", "bee"))
    with pytest.raises(CheckpointError, match="has no classifier for the 2 classes"):
        _evaluate_weights(root, tmp_path, {})


def test_tensorboard_contains_the_losses(whole_run):
    events = EventAccumulator(str(Path(whole_run.output) / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([row["loss"] for row in _rows(Path(whole_run.output)) if "loss" in row], rel=1e-6)


def test_run_is_logged(whole_run):
    log = (Path(whole_run.output) / "log.txt").read_text()
    assert "iteration 12/12  eta 0:00:00  loss " in log
    assert "pvt_v2_b0 on 27 training and 12 validation images of 3 classes" in log
    assert "model_best.safetensors" in log


def test_final_weights_are_from_the_last_epoch(whole_run):
    final = safetensors.torch.load_file(Path(whole_run.output) / "model_final.safetensors")
    averaged = {key.removeprefix("module."): value for key, value in _end_state(whole_run)["ema"].items()}
    assert all(torch.equal(value, averaged[name]) for name, value in final.items())
    assert not load_pretrained(
        create_model("pvt_v2_b0", 3, img_size=32), Path(whole_run.output) / "model_final.safetensors"
    ).new


@pytest.fixture
def old_run(whole_run, tmp_path) -> Path:
    """A finished run with the file names of earlier versions."""
    old = shutil.copytree(whole_run.output, tmp_path / "old")
    (old / "model_final.safetensors").unlink()
    (old / "model_best.safetensors").rename(old / "best.safetensors")
    (old / "metrics.json").rename(old / "metrics.jsonl")
    options = (old / "options.yaml").read_text()
    (old / "options.yaml").write_text(options.replace("resume: false", "resume: ''"))
    return old


def test_card_command_accepts_a_run_of_an_earlier_version(old_run, tmp_path, whole_run):
    with pytest.warns(
        FutureWarning, match=r"best\.safetensors is deprecated .*model_best\.safetensors: rename the file"
    ):
        start("card", [str(old_run), "--output", str(tmp_path / "share")], "pvt-det card")
    shared = safetensors.torch.load_file(tmp_path / "share/model.safetensors")
    best = safetensors.torch.load_file(Path(whole_run.output) / "model_best.safetensors")
    assert all(torch.equal(shared[name], best[name]) for name in best)


def test_resume_accepts_a_run_of_an_earlier_version(old_run, whole_run):
    _train(dataclasses.replace(whole_run, output=str(old_run), resume=True))
    assert _rows(old_run) == _rows(Path(whole_run.output))
    assert not (old_run / "metrics.jsonl").exists()
    assert not (old_run / "best.safetensors").exists()
    best, whole = (
        safetensors.torch.load_file(Path(run) / "model_best.safetensors") for run in (old_run, whole_run.output)
    )
    assert all(torch.equal(best[name], whole[name]) for name in whole)


def test_evaluate_accepts_weights_of_an_earlier_version(old_run, whole_run, data, tmp_path):
    cfg = _config(data, tmp_path / "out", weights=str(old_run / "best.safetensors"), eval_only=True)
    top1 = read_top1(Path(whole_run.output))
    assert _evaluate(cfg).top1 == pytest.approx(top1)
    assert (tmp_path / "out/evaluation/set_val/log.txt").is_file()


class OneLayer(ClassificationTrainer):
    @classmethod
    def build_model(cls, cfg, num_classes):
        torch.manual_seed(cfg.seed)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * cfg.img_size**2, num_classes))

    def __init__(self, cfg, process):
        super().__init__(cfg, process)
        self.updates, self.accuracies = [], []

    def after_step(self):
        super().after_step()
        self.updates.append(self.update)

    def evaluate(self):
        accuracy = super().evaluate()
        self.accuracies.append(accuracy.top1)
        return accuracy


def test_subclass_overrides_network_and_loop(data, tmp_path):
    cfg = _config(data, tmp_path)
    with start_run(cfg) as process:
        trainer = OneLayer(cfg, process)
        best = trainer.train()
    assert trainer.updates == list(range(1, 13))
    assert trainer.accuracies == [row["top1"] for row in _rows(tmp_path) if "top1" in row]
    assert best == max(trainer.accuracies)
    assert set(safetensors.torch.load_file(tmp_path / "model_final.safetensors")) == {"1.weight", "1.bias"}
