"""A complete tiny run: its files, evaluating and resuming it, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pvt_det.api import evaluate, train
from pvt_det.config import load_config
from pvt_det.data.coco.registration import register_coco
from pvt_det.engine import defaults
from pvt_det.engine.defaults import select_device
from pvt_det.engine.evaluate import validation_losses
from pvt_det.engine.trainer import PVTTrainer
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.results import load_run


@pytest.fixture
def finished(tmp_path, tiny_cfg, monkeypatch):
    """Folder of a finished run of 2 iterations with a moving average of the weights."""
    monkeypatch.setattr("pvt_det.utils.progress._LEAST_SECONDS", 0.0)
    cfg = tiny_cfg(
        tmp_path / "run",
        val=True,
        SOLVER__MAX_ITER=2,
        SOLVER__STEPS=[],
        SOLVER__EMA__ENABLED=True,
        TEST__EVAL_PERIOD=1,
        TEST__VALIDATION_LOSS=True,
    )
    train(cfg, config_file="tiny.yaml")
    return tmp_path / "run"


def test_run_files_and_evaluation_from_saved_config(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["config_file"] == "tiny.yaml"
    assert results["model"] == "RetinaNet pvt_v2_b0"
    assert (results["dataset"], results["seed"]) == ("instances_val", 3)
    assert 0 < results["training_seconds"] < 600
    assert 0.1 < results["peak_memory_gib"] < 64
    final = results["checkpoints"]["final"]
    assert final["iteration"] == 2
    assert results["checkpoints"]["best"]["selected_by"] == "bbox/AP"
    assert final["metrics"]["validation"]["total_loss"] > 0
    assert isinstance(json.loads((finished / results["detections"]["file"]).read_text()), list)
    lines = [json.loads(line) for line in (finished / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_cls", "loss_box_reg", "lr", "gradient_norm", "bbox/AP"} <= {
        key for line in lines for key in line
    }
    # Each evaluation is in the line of its iteration, with the losses.
    assert [line["iteration"] for line in lines if "bbox/AP" in line and "total_loss" in line] == [0, 1]
    assert lines[-1]["bbox/AP"] == pytest.approx(final["metrics"]["bbox"]["AP"])
    assert list(finished.glob("events.out.tfevents.*"))
    assert (finished / "model_best.pth").exists()
    # The evaluation after the first iteration and the final one show their progress.
    log = (finished / "log.txt").read_text()
    assert [log.count(f"{what} instances_val 3/3  eta ") for what in ("evaluating", "validation loss of")] == [2, 2]
    assert "iteration 1/2  eta " in log

    cfg = load_config(finished / "config.yaml", ["MODEL.WEIGHTS", str(finished / "model_final.pth")])
    config_before = (finished / "config.yaml").read_text()
    metrics = evaluate(cfg)
    assert metrics["validation"] == pytest.approx(final["metrics"]["validation"])
    evaluation = json.loads((finished / "evaluation/instances_val/evaluation.json").read_text())
    assert evaluation["checkpoints"]["evaluated"]["iteration"] == 2
    assert (finished / "config.yaml").read_text() == config_before


def test_each_of_several_test_sets_has_results(tmp_path, tiny_cfg, shapes):
    for name in ("train", "val"):
        register_coco(f"several_{name}", shapes / f"annotations/instances_{name}.json", shapes / name)
    changes = {"SOLVER__MAX_ITER": 1, "SOLVER__STEPS": [], "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0}
    cfg = tiny_cfg(tmp_path / "run", **changes)
    cfg.DATASETS.TRAIN_JSON = cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("several_train",), ("several_train", "several_val")
    cfg.MODEL.RETINANET.NUM_CLASSES = 4
    metrics = train(cfg)
    trained = [tmp_path / "run", tmp_path / "run/evaluation/several_val"]
    assert [load_run(folder).shown for folder in trained] == ["final", "final"]
    assert load_run(trained[0]).checkpoints["best"].selected_by == "bbox/AP"

    cfg = load_config(tmp_path / "run/config.yaml", ["MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth")])
    cfg.OUTPUT_DIR = str(tmp_path / "evaluated")
    again = evaluate(cfg, page=True)
    assert set(again) == set(metrics) == set(cfg.DATASETS.TEST)
    evaluated = [tmp_path / "evaluated/evaluation" / name for name in cfg.DATASETS.TEST]
    for folders in (trained, evaluated):
        for folder, name, images in zip(folders, ("several_train", "several_val"), (8, 3), strict=True):
            found = load_run(folder)
            assert (found.dataset, found.value("bbox")) == (name, metrics[name]["bbox"]["AP"])
            assert [record.dataset for record in found.data if record.role == "test"] == [name]
            assert found.has_detections
            assert not found.mismatches
            assert len(found.read_ground_truth().images) == images
    assert all((folder / "report.html").is_file() for folder in evaluated)


def test_moving_average_is_saved_as_model(finished):
    from pvt_det.weights.reader import read_file

    state = read_file(finished / "model_0000001.pth")
    assert state["ema_updates"] == 2
    different = [
        name for name, value in state["model"].items() if not torch.equal(value, state["training_model"][name])
    ]
    assert "head.cls_score.weight" in different
    final = read_file(finished / "model_final.pth")["model"]
    assert all(torch.equal(final[name], value) for name, value in state["model"].items())


def test_training_state_is_kept_in_the_last_checkpoint_alone(finished):
    sizes = {path.name: path.stat().st_size for path in finished.glob("*.pth")}
    assert sizes.keys() == {"model_0000001.pth", "model_best.pth", "model_final.pth"}
    # AdamW's two moments and the weights before averaging.
    assert sizes["model_final.pth"] == pytest.approx(sizes["model_0000001.pth"] / 4, rel=0.1)
    assert sizes["model_best.pth"] == pytest.approx(sizes["model_final.pth"], rel=0.01)


def test_weights_are_loaded_by_detectron2(finished, saved_weights):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    model = build_model(load_config(finished / "config.yaml"))
    rest = DetectionCheckpointer(model).load(str(finished / "model_best.pth"))
    assert rest["iteration"] in (0, 1)
    saved = saved_weights(finished / "model_best.pth")
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_resuming_finished_run_changes_no_weights(finished, saved_weights):
    before = saved_weights(finished / "model_final.pth")
    train(load_config(finished / "config.yaml"), resume=True)
    after = saved_weights(finished / "model_final.pth")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_damaged_and_missing_weights_are_rejected(finished):
    for name in ("model_final.pth", "model_0000001.pth"):
        content = bytearray((finished / name).read_bytes())
        content[len(content) // 2] ^= 1
        (finished / name).write_bytes(content)
    cfg = load_config(finished / "config.yaml", ["MODEL.WEIGHTS", str(finished / "model_final.pth")])
    with pytest.raises(CheckpointError, match=r"model_final\.pth is damaged"):
        evaluate(cfg)
    with pytest.raises(ConfigError, match="--eval-only needs weights"):
        evaluate(load_config(finished / "config.yaml"))
    with pytest.raises(CheckpointError, match=r"model_0000001\.pth is damaged"):
        train(load_config(finished / "config.yaml"), resume=True)


def test_validation_losses_do_not_change_model(tmp_path, tiny_cfg):
    from pvt_det.data.sets import register_datasets

    cfg = tiny_cfg(tmp_path, val=True)
    register_datasets(cfg)
    trainer = PVTTrainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    losses = validation_losses(cfg, trainer.model, cfg.DATASETS.TEST[0])
    assert losses.keys() == {"total_loss", "loss_cls", "loss_box_reg"}
    assert losses["total_loss"] == pytest.approx(losses["loss_cls"] + losses["loss_box_reg"])
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert losses == validation_losses(cfg, trainer.model, cfg.DATASETS.TEST[0])


def test_validation_losses_restore_the_model_after_an_error(tmp_path, tiny_cfg):
    from pvt_det.data.sets import register_datasets

    cfg = tiny_cfg(tmp_path, val=True)
    register_datasets(cfg)
    model = PVTTrainer(cfg).model.eval()
    model.head.train()
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = iter(range(9))

    def stop() -> None:
        if next(images) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validation_losses(cfg, model, cfg.DATASETS.TEST[0], stop)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_validation_losses_are_means_over_images(tmp_path, tiny_cfg, monkeypatch):
    from pvt_det.engine import evaluate as module

    class Constant(torch.nn.Module):
        """Returns the mean of the values in a batch as its loss."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Identity()

        def forward(self, batch: list[float]) -> dict[str, torch.Tensor]:
            return {"loss": torch.tensor(batch).mean()}

    batches: list[list[float]] = [[1.0, 1.0, 1.0], [5.0]]
    monkeypatch.setattr(module, "build_detection_validation_loader", lambda cfg, name: batches)
    cfg = tiny_cfg(tmp_path, val=True)
    assert validation_losses(cfg, Constant(), "set") == {"total_loss": 2.0, "loss": 2.0}
    batches.clear()
    with pytest.raises(DataError, match="set has no images to compute losses on"):
        validation_losses(cfg, Constant(), "set")


def test_run_without_validation_data(tmp_path, tiny_cfg):
    assert train(tiny_cfg(tmp_path, SOLVER__MAX_ITER=1, SOLVER__STEPS=[])) == {}
    results = json.loads((tmp_path / "results.json").read_text())
    (final,) = results["checkpoints"].values()
    assert (results["dataset"], final["metrics"], final["iteration"]) == ("", {}, 1)
    assert "Not evaluated." in (tmp_path / "README.md").read_text()


def test_early_stopping(tmp_path, tiny_cfg):
    cfg = tiny_cfg(
        tmp_path,
        val=True,
        SOLVER__BASE_LR=1e-30,
        SOLVER__MAX_ITER=50,
        SOLVER__STEPS=[],
        TEST__EVAL_PERIOD=1,
        TEST__EARLY_STOP_PATIENCE=1,
    )
    train(cfg)
    checkpoints = json.loads((tmp_path / "results.json").read_text())["checkpoints"]
    assert {name: checkpoint["iteration"] for name, checkpoint in checkpoints.items()} == {"best": 1, "final": 2}


@pytest.mark.parametrize("key", ["TEST__PRECISE_BN__ENABLED"])
def test_unsupported_keys_are_rejected(tmp_path, tiny_cfg, key):
    with pytest.raises(ConfigError, match=key.replace("__", r"\.")):
        train(tiny_cfg(tmp_path, **{key: True}))


def test_gpu_index_must_exist_and_needs_single_process(monkeypatch):
    selected = []
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:1"):
        select_device(torch.device(name))
    assert selected == [torch.device("cuda:1")]
    with pytest.raises(ConfigError, match=r"cuda:2 is not available: PyTorch can use cuda:0, cuda:1, cpu"):
        select_device(torch.device("cuda:2"))
    monkeypatch.setattr(defaults.comm, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="cuda:1: with several processes, each uses its own GPU"):
        select_device(torch.device("cuda:1"))


def test_out_of_memory_is_one_line(tmp_path, tiny_cfg, monkeypatch):
    def out_of_memory(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(PVTTrainer, "train", out_of_memory)
    with pytest.raises(ConfigError, match=r"out of memory on cpu with SOLVER.IMS_PER_BATCH 2\. .*ACCUMULATE_STEPS 2"):
        train(tiny_cfg(tmp_path))


def test_annotation_files_are_parsed_once_per_run(tmp_path, tiny_cfg, monkeypatch):
    from pvt_det.data.coco import annotations

    read, files = annotations.read_json, []
    monkeypatch.setattr(annotations, "read_json", lambda file: files.append(file) or read(file))
    # Use copies, because another test may have read the originals in this process.
    cfg = tiny_cfg(tmp_path, val=True, SOLVER__MAX_ITER=2, SOLVER__STEPS=[], TEST__EVAL_PERIOD=1)
    for part in ("TRAIN", "VAL"):
        copied = tmp_path / f"{part}.json"
        copied.write_text(Path(cfg.DATASETS[f"{part}_JSON"]).read_text())
        cfg.DATASETS[f"{part}_JSON"] = str(copied)
    train(cfg)
    assert sorted(map(str, files)) == [cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.VAL_JSON]


@pytest.mark.parametrize(("load", "threads", "warned"), [(1.2, 2, True), (0.4, 2, False), (1.2, 1, False)])
def test_busy_processor_is_reported(tiny_cfg, tmp_path, monkeypatch, capsys, load, threads, warned):
    monkeypatch.setattr(defaults, "busy_share", lambda: load)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with defaults.default_setup(tiny_cfg(tmp_path / "run")):
        pass
    log = " ".join(capsys.readouterr().out.split())
    assert ("the load average is 120 % of the cores. End them, or train with one thread" in log) == warned
