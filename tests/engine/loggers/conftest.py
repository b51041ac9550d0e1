"""Fixtures of the tests of loggers: an installed package that offers loggers, and a frozen config."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvt_det.config import get_config
from pvt_det.engine.loggers import tracking


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package with one module that offers loggers: `offer("acme", "import x", csv="acme:build")`."""

    def install(package: str, code: str = "", **loggers: str) -> None:
        folder = tmp_path / f"installed_{package}"
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        # As older versions of setuptools write the name.
        name = package.replace("_", "-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in loggers.items()]
        (info / "entry_points.txt").write_text("\n".join(["[pvt_det.writers]", *lines, ""]))
        (folder / f"{package}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)

    return install


@pytest.fixture
def cfg():
    """The default config of a run."""
    cfg = get_config()
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.fixture(autouse=True)
def _no_open_runs():
    yield
    tracking._open.clear()
