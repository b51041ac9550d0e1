"""`pvt_det.evaluate` returns what `pvt-det eval` writes."""

from __future__ import annotations

import json

import pytest

import pvt_det
from pvt_det.errors import ConfigError, DataError


def test_metrics_of_a_run_on_given_data(untrained_run, shapes, tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr("pvt_det.api.write_page", lambda *paths: pages.append(paths))  # drawing it takes long
    data = (shapes / "annotations/instances_train.json", shapes / "train")
    found = pvt_det.evaluate(untrained_run, data=data, output=tmp_path / "out", overrides={"TEST.PRECISION": "fp32"})
    assert found.output == tmp_path / "out"
    saved = json.loads((found.output / "evaluation.json").read_text())
    assert saved["dataset"] == "instances_train"
    assert found.metrics["bbox"]["AP"] == pytest.approx(saved["checkpoints"]["evaluated"]["metrics"]["bbox"]["AP"])
    assert pages == [(found.output, found.output / "report.html", None)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": ("x.json", "y")}, DataError, r"give the new path with `data`\.$"),
        ({"data": "x.json"}, ConfigError, r'^data: .*such as \("data\.json", "images/"\)'),
        ({"weights": "a.pth", "overrides": {"MODEL.WEIGHTS": "b.pth"}}, ConfigError, "weights are given twice"),
        ({"against": "nowhere"}, DataError, "nowhere"),
    ],
)
def test_errors_name_the_arguments(untrained_run, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        pvt_det.evaluate(untrained_run, output=tmp_path / "out", **options)
