"""Fixtures for the benchmark tests."""

from __future__ import annotations

import pytest

from benchmarks import evaluation, mapper, startup, trunk


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure memory in this process, because a new process needs seconds to import everything."""
    for suite in (evaluation, mapper, startup, trunk):
        monkeypatch.setattr(suite, "run_in_own_process", lambda function, *arguments: function(*arguments))


@pytest.fixture
def coco_mini(shared_dir):
    return shared_dir / "data/coco_mini"
