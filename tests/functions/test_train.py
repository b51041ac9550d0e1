"""`pvt_det.train`: results, what it adds to a run, exact resume, errors, and a program that is left as it was."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage
from torchvision.transforms import v2

import pvt_det
from pvt_det.errors import ConfigError, Interrupted
from tests.tiny_runs import TINY, stop_in

ROOT = Path(__file__).parents[2]
RECIPE = "retinanet_pvt_tiny"
SHORT = TINY | {"SOLVER.MAX_ITER": 1, "SOLVER.STEPS": [], "SOLVER.WARMUP_ITERS": 0}


class Recorder(HookBase):
    """Records the iterations and the order of the hooks."""

    def __init__(self):
        self.iterations = []
        self.is_last = False

    def before_train(self):
        self.is_last = self.trainer._hooks[-2] is self

    def after_step(self):
        self.iterations.append(self.trainer.iter)


class Failing(HookBase):
    """Fails in the first iteration and again at the end."""

    def after_step(self):
        raise RuntimeError("the hook failed")

    def after_train(self):
        raise RuntimeError("the hook failed at the end")


class Writer(EventWriter):
    """Records what was written."""

    def __init__(self):
        self.losses = []
        self.closed = 0

    def write(self):
        self.losses.append(get_event_storage().latest()["total_loss"][0])

    def close(self):
        self.closed += 1


class Spy(T.Augmentation):
    """Records the sizes of the images that it is applied to."""

    def __init__(self):
        self.sizes = []

    def get_transform(self, image):
        self.sizes.append(image.shape)
        return T.NoOpTransform()


@pytest.fixture
def data(shapes):
    return {part: (shapes / f"annotations/instances_{part}.json", shapes / part) for part in ("train", "val")}


@pytest.fixture
def run(data):
    """Train a tiny model: `run(output, hooks=[…])`."""

    def train(output, overrides=SHORT, **options):
        return pvt_det.train(RECIPE, train=data["train"], output=output, overrides=overrides, **options)

    return train


def process_state():
    """What a run must leave as it was."""
    names = ("pvt_det", "detectron2", "fvcore", "py.warnings", "torch.fx._symbolic_trace", "matplotlib.font_manager")
    loggers = [logging.getLogger(name) for name in names]
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "loggers": [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers],
        "warnings": (list(warnings.filters), warnings.showwarning),
        "random": (random.random(), np.random.random(), torch.rand(1).item()),
        "threads": torch.get_num_threads(),
        "flags": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.is_grad_enabled()),
        "data sets": sorted(DatasetCatalog.list()),
        "metadata": sorted(MetadataCatalog.list()),
        "environment": dict(os.environ),
    }


def seed():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def test_results_and_a_program_that_is_left_as_it_was(tmp_path, data, capsys):
    cfg = pvt_det.model_zoo.get_config(RECIPE)
    before_config = cfg.dump()
    seed()
    before = process_state()
    seed()
    hook, writers, spy = Recorder(), [Writer(), Writer()], Spy()
    results = pvt_det.train(
        cfg,
        **data,
        output=tmp_path / "run",
        overrides=SHORT | {"INPUT.MIN_SIZE_TRAIN": [80]},
        hooks=[hook],
        writers=writers,
        augmentations=[spy],
        resume=True,
    )
    assert process_state() == before
    assert cfg.dump() == before_config
    assert not cfg.is_frozen()
    assert results.output == tmp_path / "run"
    saved = json.loads((results.output / "results.json").read_text())
    assert results.metrics["bbox"]["AP"] == pytest.approx(saved["checkpoints"]["final"]["metrics"]["bbox"]["AP"])
    assert (results.output / "README.md").is_file()
    assert (hook.iterations, hook.is_last) == ([0], True)
    assert spy.sizes == [(64, 64, 3)] * 2  # before the images are resized
    assert [len(writer.losses) > 0 for writer in writers] == [True, True]
    assert [writer.closed for writer in writers] == [1, 1]
    assert "total_loss" in (results.output / "metrics.json").read_text()
    assert isinstance(results.predictor, pvt_det.Predictor)
    assert results.predictor is results.predictor
    assert results.predictor.class_names == ("circle", "square", "triangle", "star")
    # A second run in this program has its own log, and logs every message once.
    pvt_det.train(cfg, train=data["train"], output=tmp_path / "second", overrides=SHORT)
    output = capsys.readouterr().out
    assert output.count("Saved the first training images") == 2
    assert (tmp_path / "second/log.txt").read_text().count("Saved the first training images") == 1


def test_resumed_run_with_augmentations_equals_uninterrupted_run(tmp_path, run, saved_weights, monkeypatch):
    augmentations = [v2.ColorJitter(0.5, 0.5, 0.5, 0.2), T.RandomRotation([-20, 20])]
    settings = {"overrides": TINY | {"SOLVER.MAX_ITER": 3, "SOLVER.STEPS": [], "DATALOADER.NUM_WORKERS": 1}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, augmentations=augmentations, **settings)
    with monkeypatch.context() as patch:
        stop_in(patch, 2, signal.SIGINT)
        with pytest.raises(Interrupted, match=r"SIGINT after iteration 2.*Resume with: the same call with resume=True"):
            run(parts, augmentations=augmentations, **settings)
    with pytest.raises(ConfigError, match=r'augmentations was \[.*ColorJitter.*allow_change=\["augmentations"'):
        run(parts, augmentations=augmentations[:1], resume=True, **settings)
    run(parts, augmentations=augmentations, resume=True, **settings)
    weights, others = (saved_weights(folder / "model_final.pth") for folder in (whole, parts))
    assert not [name for name in weights if not torch.equal(weights[name], others[name])]
    results = json.loads((whole / "results.json").read_text())
    assert results["recipe"].endswith(", 2 more augmentations")
    assert "ColorJitter" in results["augmentations"][0]
    longer = {"overrides": settings["overrides"] | {"SOLVER.MAX_ITER": 4}}
    run(parts, resume=True, allow_change=["augmentations"], **longer)
    changes = json.loads((parts / "config_changes.json").read_text())
    (change,) = (each for each in changes if each["key"] == "augmentations")
    assert change["new"] == []


def test_exception_of_a_hook_ends_the_run_and_closes_the_writers(tmp_path, run):
    writer = Writer()
    before = process_state()["loggers"]
    with pytest.raises(RuntimeError, match="the hook failed at the end") as caught:
        run(tmp_path, hooks=[Failing()], writers=[writer])
    assert str(caught.value.__context__) == "the hook failed"
    assert writer.closed == 1
    assert process_state()["loggers"] == before


def test_unusable_augmentation_is_reported_by_the_workers_as_an_error_of_the_user(tmp_path, run):
    writer = Writer()
    overrides = SHORT | {"DATALOADER.NUM_WORKERS": 1}
    with pytest.raises(ConfigError, match=r"^RandomCrop.* cannot be used as an augmentation"):
        run(tmp_path, overrides, augmentations=[v2.RandomCrop(500)], writers=[writer])
    assert writer.closed == 1


def test_trains_in_a_thread(tmp_path, run):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, tmp_path).result().output == tmp_path


def test_trains_on_label_maps(tmp_path, shapes):
    data = {part: (shapes / f"semantic_{part}", shapes / part) for part in ("train", "val")}
    overrides = {key: value for key, value in SHORT.items() if "RETINANET" not in key and "ROI" not in key}
    augmentations = [v2.RandomHorizontalFlip()]
    results = pvt_det.train(
        "shapes/semantic_fpn_pvt_tiny", **data, output=tmp_path, overrides=overrides, augmentations=augmentations
    )
    assert 0 <= results.metrics["sem_seg"]["mIoU"] <= 100
    assert isinstance(results.predictor, pvt_det.Segmentor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"overrides": {"SOLVER.BASE_LRR": 1}},
            r"^overrides: unknown key SOLVER\.BASE_LRR\. Did you mean",
        ),
        ({"overrides": ["SEED", 1]}, r"^overrides: .*Expected a dict"),
        ({"train": "train.json"}, r"^train: 'train\.json' is not a pair of paths"),
        ({"train": [("a.json", "a"), ("b.json",)]}, r"^train: \('b\.json',\) is not a pair of paths"),
        ({"train": []}, r"^train: the list of data sets is empty"),
        (
            {"train": [("a.json", "a"), ("b.json", "b")]},
            r"^DATASETS\.TRAIN_JSON a\.json, DATASETS\.TRAIN_JSON b\.json, .* with `train`",
        ),
        (
            {"hooks": [Recorder]},
            r"^hooks: .*Recorder'> is not an instance of .*HookBase.*Recorder\(\): add the brackets",
        ),
        ({"writers": [print]}, r"^writers: .*is not an instance of .*EventWriter"),
        ({"augmentations": ["flip"]}, r"^augmentations: 'flip' is a str"),
        ({"allow_partial": "head.*"}, r"^allow_partial: 'head\.\*' is a string\. Expected a list"),
        ({"allow_change": ["INPUT.*"]}, r"^`allow_change` is for resumed training only\. Add `resume=True`"),
        ({"overrides": SHORT | {"DATASETS.TRAIN_JSON": "x.json"}}, r"^`train` sets DATASETS\.TRAIN_JSON to "),
        (
            {"train": ("no.json", "no")},
            r"no\.json.*do not exist\. If they have moved, .* with `train`\.$",
        ),
    ],
)
def test_errors_name_the_arguments(tmp_path, data, options, message):
    given = {"train": data["train"], "output": tmp_path / "run", "overrides": SHORT} | options
    with pytest.raises(pvt_det.errors.PvtDetError, match=message) as caught:
        pvt_det.train(RECIPE, **given)
    assert "--" not in str(caught.value)


def test_folder_of_an_earlier_run_is_refused(tmp_path, run):
    (tmp_path / "model_final.pth").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"Resume from them with `resume=True`, .* with `output`"):
        run(tmp_path)


def test_config_without_the_keys_of_this_package_is_refused(tmp_path):
    from detectron2.config import get_cfg

    with pytest.raises(ConfigError, match=r"^config: no key .*pvt_det\.get_config\(\)"):
        pvt_det.train(get_cfg(), output=tmp_path)


SCRIPT = """
import json, os, sys
import pvt_det
from pvt_det.errors import Interrupted

data, output, overrides = json.loads(sys.argv[1])
metrics = []
for number in range(2):
    results = pvt_det.train("retinanet_pvt_tiny", **data, output=f"{output}/{number}", overrides=overrides)
    metrics.append(results.metrics["bbox"]["AP50"])
evaluation = pvt_det.evaluate(results.output)
with open(f"{output}/rank{os.environ['RANK']}.json", "w") as file:
    json.dump([*metrics, evaluation.metrics["bbox"]["AP50"], torch_is_idle()], file)
"""


@pytest.mark.slow
def test_every_process_of_torchrun_trains_twice_and_gets_the_results(tmp_path, data):
    script = tmp_path / "script.py"
    idle = "def torch_is_idle():\n    import torch.distributed as dist\n    return not dist.is_initialized()\n"
    script.write_text(idle + SCRIPT)
    paths = {part: [str(path) for path in pair] for part, pair in data.items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    command.append(json.dumps([paths, str(tmp_path), SHORT]))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[-1] is True
    assert first[0] == first[1] == pytest.approx(first[2])
