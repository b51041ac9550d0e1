"""The code of the page about the Python API runs, with a tiny model."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest
import yaml

import pvt_det
from pvt_det.weights.reader import read_file
from tests.drills.tiny import shapes_keys
from tests.tiny_runs import TINY

PAGE = Path(__file__).parents[2] / "docs/python-api.md"
TINY_RUN = TINY | {"SOLVER.MAX_ITER": 1, "SOLVER.STEPS": [], "SOLVER.WARMUP_ITERS": 0}


@pytest.fixture
def project(shapes, tmp_path, monkeypatch):
    """Folder with the files that the page names."""
    for part, name in (("train", "train"), ("val", "val"), ("val", "test")):
        shutil.copy(shapes / f"annotations/instances_{part}.json", tmp_path / f"{name}.json")
        shutil.copytree(shapes / part, tmp_path / "images", dirs_exist_ok=True)
    shutil.copy(next((shapes / "val").iterdir()), tmp_path / "photo.jpg")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in TINY_RUN.items()}
    tree: dict = {"_BASE_": "retinanet_pvt_tiny"}
    for key, value in (settings | {k: str(v) for k, v in shapes_keys(shapes.parent, "TRAIN").items()}).items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapted(code: str) -> str:
    """Make the run of the page tiny."""
    return re.sub(r"overrides=\{.*\}", f"overrides={TINY_RUN!r}", code)


def blocks() -> list[str]:
    """Return the code of the page."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(code: str, names: dict[str, object]) -> None:
    """Run a block of the page."""
    exec(compile(adapted(code), PAGE.name, "exec"), names)


def test_blocks_run(project, capsys, monkeypatch):
    monkeypatch.setattr("pvt_det.api.write_page", lambda *paths: None)  # drawing it takes long
    names: dict[str, object] = {}
    for code in blocks():
        if "pvt_det.export" not in code:
            run(code, names)
    printed = capsys.readouterr().out
    assert "True ['circle', 'square', 'triangle', 'star']" in printed
    assert "'total_loss': " in printed  # the writer of the page
    for folder in ("mine", "hooks", "augmented"):
        assert (project / "output" / folder / "model_final.pth").is_file()
    assert (project / "output/mine/evaluation/test/evaluation.json").is_file()


@pytest.mark.slow
def test_block_of_the_export_runs(project, retinanet_small_run, smallest_variant, capsys):
    (code,) = (code for code in blocks() if "pvt_det.export" in code)
    shutil.copytree(retinanet_small_run, project / "output/mine")  # it finds something
    names: dict[str, object] = {"pvt_det": pvt_det}
    level = logging.getLogger("torch.onnx").level
    run(code.replace("mine.onnx", "mine.pt2"), names)
    assert logging.getLogger("torch.onnx").level == level
    report = names["report"]
    assert capsys.readouterr().out == f"{report.outputs} {report.parity}\n"
    assert report.path.samefile(project / "mine.pt2")
    weights = read_file(retinanet_small_run / "model_final.pth")["model"]
    assert report.path.stat().st_size > 4 * sum(each.numel() for each in weights.values())
    assert report.name == "RetinaNet pvt_v2_smallest"
    assert report.outputs == ("boxes", "scores", "labels", "images")
    assert report.parity.detections > 0
