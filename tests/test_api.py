"""The functions that put rooms together: what an evaluation leaves, and whether a page can be written."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import pytest

from pvt_det import api
from pvt_det.config import get_config


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """The config of an evaluation whose metrics are there already."""
    cfg = get_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    monkeypatch.setattr(api, "default_setup", lambda cfg, **options: nullcontext())
    monkeypatch.setattr(api, "evaluate_weights", lambda cfg, **options: {"bbox": {"AP": 40.4}})
    return cfg


def test_an_evaluation_writes_its_page_into_the_output_folder(evaluated, monkeypatch, tmp_path, caplog):
    pages = []
    monkeypatch.setattr(api, "write_page", lambda *arguments: pages.append(arguments))
    with caplog.at_level(logging.INFO, "pvt_det"):
        assert api.evaluate(evaluated, page=True) == {"bbox": {"AP": 40.4}}
    assert api.evaluate(evaluated, page=True, against=Path("other")) == {"bbox": {"AP": 40.4}}
    assert api.evaluate(evaluated) == {"bbox": {"AP": 40.4}}
    assert pages == [(tmp_path, tmp_path / "report.html", None), (tmp_path, tmp_path / "report.html", Path("other"))]
    assert f"Open {tmp_path / 'report.html'} in a browser." in caplog.text


def test_an_evaluation_without_a_page_has_evaluated_all_the_same(evaluated, caplog):
    with caplog.at_level(logging.WARNING, "pvt_det"):
        assert api.evaluate(evaluated, page=True) == {"bbox": {"AP": 40.4}}
    assert "No page is written: " in caplog.text
