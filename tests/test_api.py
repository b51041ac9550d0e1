"""Entry points: an evaluation writes its report page, and does not fail if the page cannot be written."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import pytest

from pvt_det import api
from pvt_det.config import get_config


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """Config of an evaluation that returns fixed metrics."""
    cfg = get_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.DATASETS.TEST = ["val"]
    monkeypatch.setattr(api, "default_setup", lambda cfg, **options: nullcontext())
    monkeypatch.setattr(api, "evaluate_weights", lambda cfg, **options: {"bbox": {"AP": 40.4}})
    return cfg


def test_evaluate_writes_page_to_output_folder(evaluated, monkeypatch, tmp_path, caplog):
    pages = []
    monkeypatch.setattr(api, "write_page", lambda *args: pages.append(args))
    with caplog.at_level(logging.INFO, "pvt_det"):
        assert api.evaluate(evaluated, page=True) == {"bbox": {"AP": 40.4}}
    assert api.evaluate(evaluated, page=True, against=Path("other")) == {"bbox": {"AP": 40.4}}
    assert api.evaluate(evaluated) == {"bbox": {"AP": 40.4}}
    assert pages == [(tmp_path, tmp_path / "report.html", None), (tmp_path, tmp_path / "report.html", Path("other"))]
    assert f"Open {tmp_path / 'report.html'} in a browser." in caplog.text


def test_evaluate_returns_metrics_if_page_fails(evaluated, caplog):
    with caplog.at_level(logging.WARNING, "pvt_det"):
        assert api.evaluate(evaluated, page=True) == {"bbox": {"AP": 40.4}}
    assert "The report page could not be written: " in caplog.text
