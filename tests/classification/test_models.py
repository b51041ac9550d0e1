"""Classifiers of timm: names, training, evaluation, and their weights in detectors."""

from __future__ import annotations

import dataclasses
import json
import signal

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from timm import create_model

from pvt_det.classification import ClassificationTrainer, TrainConfig, evaluate, start_run, train
from pvt_det.classification.models import build_classifier
from pvt_det.config import load_config
from pvt_det.errors import ConfigError, Interrupted
from pvt_det.inference.trunks import trained_classifier
from pvt_det.modeling.timm_backbone import TimmBackbone
from pvt_det.models.pvt_v2 import PyramidVisionTransformerV2
from pvt_det.recipes import RECIPES
from pvt_det.weights import load_pretrained, save_safetensors
from pvt_det.weights.reader import read_file
from tests.data.imagenet.fakes import class_folders

FAMILY = sorted(
    {
        name
        for path in RECIPES.glob("retinanet_*.yaml")
        if (name := yaml.safe_load(path.read_text()).get("MODEL", {}).get("TIMM", {}).get("NAME"))
    }
)
# A third of a million parameters, with BatchNorm.
SMALL = "test_resnet"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("cls") / "set", train=9, val=4)


def _config(data, output, **changes):
    base = TrainConfig(
        model=SMALL, data=str(data), output=str(output), img_size=32, epochs=2, batch_size=8, warmup_epochs=0.5,
        lr=1e-3, lr_batch=0, drop_path_rate=0.2, ema_decay=0.9, workers=0, log_every=1, device="cpu", amp="none",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def _saved(tmp_path, model):
    path = tmp_path / "classifier.safetensors"
    save_safetensors(path, model.state_dict(), {"format": "pt"})
    return path


class Stopped(ClassificationTrainer):
    """Receives SIGTERM after the second update."""

    def after_step(self):
        if self.update == 2:
            signal.raise_signal(signal.SIGTERM)
        super().after_step()


def test_a_resumed_run_with_batch_norm_and_a_moving_average_equals_an_uninterrupted_one(data, tmp_path):
    with start_run(_config(data, tmp_path / "whole")) as process:
        best = train(_config(data, tmp_path / "whole"), process)
    cfg = _config(data, tmp_path / "stopped")
    with pytest.raises(Interrupted), start_run(cfg) as process:
        Stopped(cfg, process).train()
    resumed = dataclasses.replace(cfg, resume=True)
    with start_run(resumed) as process:
        assert train(resumed, process) == best
    for name in ("model_final.safetensors", "model_best.safetensors"):
        whole, stopped = (read_file(tmp_path / folder / name) for folder in ("whole", "stopped"))
        assert whole.keys() == stopped.keys()
        assert all(torch.equal(value, stopped[key]) for key, value in whole.items())
        assert any(key.endswith("running_mean") for key in whole)


def test_the_card_and_an_evaluation_of_the_weights(data, tmp_path):
    cfg = _config(data, tmp_path / "run", model="resnet18", norm="GN", epochs=1, ema_decay=0.0, warmup_epochs=0.0)
    with start_run(cfg) as process:
        best = train(cfg, process)
    card = (tmp_path / "run/README.md").read_text()
    assert "pvt-det train-cls --model resnet18 --img-size 32 --norm GN --data DIR" in card
    assert "--config-file configs/retinanet_R_18.yaml MODEL.RESNETS.NORM GN MODEL.WEIGHTS" in card
    code = card.split("```python\n")[1].split("```")[0]
    scope: dict = {}
    weights = tmp_path / "run/model_best.safetensors"
    exec(code.replace('"model_best.safetensors"', repr(str(weights))), scope)
    assert scope["model"](torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    evaluated = dataclasses.replace(cfg, eval_only=True, weights=str(weights), output=str(tmp_path / "again"))
    with start_run(evaluated) as process:
        assert evaluate(evaluated, process).top1 == best
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["model"], results["parameters"]) == ("resnet18 classifier", 11_178_051)


def test_names_of_this_package_come_first(tmp_path):
    ours = build_classifier(TrainConfig(model="pvt_v2_b0", img_size=32), 3)
    assert isinstance(ours, PyramidVisionTransformerV2)
    theirs = create_model("pvt_v2_b0", num_classes=3)
    assert "stages.0.blocks.0.attn.q.weight" in theirs.state_dict()
    assert "block1.0.attn.q.weight" in ours.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet-18"}, "Did you mean resnet18"),
        ({"model": "pvt_tinny"}, "Did you mean pvt_tiny"),
        ({"model": "pvt_tiny", "norm": "GN"}, "has no BatchNorm"),
        ({"model": "test_convnext", "norm": "GN"}, "for ResNets of timm"),
        ({"model": "resnet18", "norm": "BN"}, "Expected one of '', GN"),
        ({"model": "resnet18", "checkpoint_stages": "1"}, "models of this package only"),
    ],
)
def test_names_and_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_options_that_only_the_model_can_refuse():
    with pytest.raises(ConfigError, match="Set --drop-path-rate 0"):
        build_classifier(TrainConfig(model="vgg11", img_size=32), 3)
    with pytest.raises(ConfigError, match="fails on images of 32 pixels"):
        build_classifier(TrainConfig(model="inception_v3", img_size=32, drop_path_rate=0.0), 3)


def _check_backbone(name, tmp_path):
    model = build_classifier(TrainConfig(model=name, img_size=64), 5)
    backbone = TimmBackbone(name)
    report = load_pretrained(backbone, _saved(tmp_path, model))
    assert (report.dialect, report.new, list(report.dropped)) == ("timm", {}, ["classifier"])
    assert len(report.loaded) == len(backbone.state_dict())
    image = torch.rand(1, 3, 64, 64)
    expected = model.eval().forward_intermediates(image, intermediates_only=True, norm=False)[-1]
    assert torch.equal(backbone.eval()(image)["stage4"], expected)


@pytest.mark.parametrize("name", ["resnet18", "test_convnext"])
def test_weights_load_into_the_backbone_of_a_detector(name, tmp_path):
    _check_backbone(name, tmp_path)


@pytest.mark.slow
# The name pvt_v2_b2 is that of this package's own model.
@pytest.mark.parametrize("name", [*(name for name in FAMILY if name != "pvt_v2_b2"), "resnet50"])
def test_weights_of_every_pyramid_with_a_recipe_load_into_the_backbone(name, tmp_path):
    _check_backbone(name, tmp_path)


def test_a_resnet_with_group_norm_loads_into_detectron2s(tmp_path):
    model = build_classifier(TrainConfig(model="resnet18", norm="GN", img_size=64), 5).eval()
    words = ["MODEL.RESNETS.NORM", "GN", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    detector = build_model(load_config("retinanet_R_18", words)).eval()
    report = load_pretrained(detector, _saved(tmp_path, model))
    assert (len(report.loaded), list(report.dropped), list(report.new)) == (60, ["fc"], ["fpn", "head"])
    image = torch.rand(1, 3, 64, 64)
    maps = model.forward_intermediates(image, intermediates_only=True)
    assert torch.equal(detector.backbone.bottom_up(image)["res5"], maps[-1])


def test_a_head_for_other_classes_is_not_taken(tmp_path):
    weights = _saved(tmp_path, build_classifier(TrainConfig(model=SMALL, img_size=32), 5))
    report = load_pretrained(build_classifier(TrainConfig(model=SMALL, img_size=32), 3), weights)
    assert list(report.new) == ["head (3 outputs, 5 in the file)"]


def test_attention_maps_of_a_model_of_timm_are_refused():
    with pytest.raises(ConfigError, match=r"resnet18 is a model of timm\. Attention maps need a PVT"):
        trained_classifier("resnet18", "none.safetensors")
