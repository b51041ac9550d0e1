"""The tutorial notebook runs from start to end, on a few iterations."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


@pytest.mark.slow
def test_tutorial_runs_from_start_to_end(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(repo_root / "docs/tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)
    (parameters,) = [cell for cell in notebook.cells if "ITERATIONS = 350" in cell.source]
    parameters.source = parameters.source.replace("ITERATIONS = 350", "ITERATIONS = 4")
    for folder in ("datasets/blood_cells", "tools"):
        shutil.copytree(repo_root / folder, tmp_path / folder)
    (tmp_path / "docs").mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(repo_root))
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path / "docs")}}).execute()

    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "error:" not in printed
    assert "MODEL" in printed  # the config that was written
    output = tmp_path / "output/tutorial"
    for name in ("data.html", "mine.yaml", "run/results.json", "report.html", "cells.onnx"):
        assert (output / name).stat().st_size > 0, name
