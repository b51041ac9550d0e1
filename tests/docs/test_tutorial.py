"""The tutorial notebook runs from start to end, with a few iterations of a small ResNet detector on small images."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

# Scores above the threshold need few iterations from a high initial score.
NARROW = {"MODEL.FPN.OUT_CHANNELS": 64, "MODEL.RETINANET.NUM_CONVS": 1, "MODEL.RETINANET.PRIOR_PROB": 0.1}
FEW = {"MODEL.RETINANET.IN_FEATURES": ["p4", "p5"], "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]}
SMALL = {"INPUT.MIN_SIZE_TRAIN": [96], "INPUT.MIN_SIZE_TEST": 96}


def replace(notebook: nbformat.NotebookNode, old: str, new: str) -> None:
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
    cell.source = cell.source.replace(old, new)


@pytest.mark.slow
def test_tutorial_runs_from_start_to_end(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(repo_root / "docs/tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)
    words = [str(word) for pair in (NARROW | FEW | SMALL).items() for word in pair]
    replace(notebook, "ITERATIONS = 350", "ITERATIONS = 4")
    replace(notebook, "--weights none", "--weights none --model R_18")  # traced faster than PVT
    replace(notebook, "*schedule])", f"*schedule, *{words}])")
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
