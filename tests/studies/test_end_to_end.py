"""A study of real runs: a pretrained ResNet of timm and a PVT, trained for a few iterations."""

from __future__ import annotations

import csv

import pytest
import yaml

from tests.command_line import run_command
from tests.data.imagenet.fakes import class_folders
from tests.drills import tiny


@pytest.mark.slow
def test_a_study_with_pretraining(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures = class_folders(tmp_path / "pictures", train=8, val=2)
    options = {"img_size": 32, "epochs": 1, "batch_size": 8, "warmup_epochs": 0, "workers": 0, "norm": "GN"}
    changes = {"SOLVER.MAX_ITER": 3, "TEST.EVAL_PERIOD": 2, "DATALOADER.NUM_WORKERS": 0}
    kept = {key: value for key, value in tiny.SETTINGS.items() if key not in ("MODEL.WEIGHTS", "MODEL.PVT.VARIANT")}
    resnet = {"MODEL.RESNETS.NORM": "GN", "MODEL.BACKBONE.FREEZE_AT": 0}
    study = {
        "data": {"shapes": None, "pictures": None},
        "pretrain": {"resnet": {"model": "resnet18", "data": "pictures", "options": options}},
        "overrides": kept | changes,
        "grids": {
            "shapes": {
                "data": ["shapes"],
                "configs": {
                    "ResNet-18": {"config": "retinanet_R_18", "weights": "resnet", "overrides": resnet},
                    "PVT": {"config": "retinanet_pvt_v2_b0", "weights": ""},
                },
            }
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    paths = [
        tiny.shapes_keys(shapes.parent, part)[f"DATASETS.{part}_{what}"]
        for part in ("TRAIN", "VAL")
        for what in ("JSON", "IMAGES")
    ]
    words = ["mine.yaml", "--data", f"shapes={','.join(map(str, paths))}", "--data", f"pictures={pictures}"]
    assert run_command("study", words) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 runs are finished." in printed
    folder = tmp_path / "output/studies/mine"
    log = (folder / "shapes/ResNet-18/seed0/log.txt").read_text()
    assert "(torchvision ResNet): 62 tensors: 60 loaded, 2 dropped: fc" in log
    with (folder / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["metric"], row["runs"]) for row in rows] == [
        ("ResNet-18", "box AP", "1"),
        ("PVT", "box AP", "1"),
    ]
    assert all(0 <= float(row["mean"]) <= 100 and float(row["training seconds"]) > 0 for row in rows)
    assert run_command("study", words) == 0
    printed = capsys.readouterr().out
    assert "started" not in printed
    assert "3 of 3 runs are finished." in printed
