"""The code of the page for Detectron2 projects runs, on a tiny model."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch import GeneralizedRCNN

from pvt_det import add_pvt_config
from tests.command_line import run_command
from tests.drills.tiny import shapes_keys
from tests.tiny_runs import TINY

PAGE = Path(__file__).parents[2] / "docs/detectron2.md"


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language, without indentation."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for name, code in found if name == language]


@pytest.fixture(scope="module")
def project(untrained_run, shapes, repo_root, tmp_path_factory):
    """Folder in which the page's code runs, and the output of each block."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "configs").symlink_to(repo_root / "configs")
    (folder / "output").mkdir()
    (folder / "output/mine").symlink_to(untrained_run)
    shutil.copy(next((shapes / "val").iterdir()), folder / "photo.jpg")
    data = {**shapes_keys(shapes.parent, "TRAIN"), **shapes_keys(shapes.parent, "VAL")}
    tiny = TINY | {"SOLVER.MAX_ITER": 1, "SOLVER.STEPS": [], "SOLVER.WARMUP_ITERS": 0, "MODEL.RETINANET.NUM_CLASSES": 4}
    names: dict[str, object] = {}
    outputs = []
    with contextlib.chdir(folder):
        for code in blocks("python"):
            if "pvt_det.train" in code:
                names["cfg"].merge_from_list(["OUTPUT_DIR", "output/ours", *words(data)])
            if "class Trainer" in code:
                names["cfg"].OUTPUT_DIR = "output/theirs"
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(code, PAGE.name, "exec"), names)
            outputs.append(printed.getvalue())
            if "merge_from_file" in code:
                names["cfg"].merge_from_list(words(tiny))
        Path("output/theirs/config.yaml").write_text(names["cfg"].dump())
    return folder, outputs, names


def words(settings):
    return [str(word) for pair in settings.items() for word in pair]


def test_all_blocks_run(project):
    folder, outputs, names = project
    assert len(outputs) == len(blocks("python"))
    assert (folder / "output/ours/results.json").is_file()
    assert (folder / "output/theirs/model_final.pth").is_file()
    assert len(names["instances"]) > 0


def test_error_is_the_one_that_the_page_shows(project):
    shown = next(block for block in blocks("") if block.startswith("Detectron2's"))
    assert any(output.startswith(shown.removesuffix(" …\n")) for output in project[1])


def test_yaml_block_builds_its_model(repo_root):
    (text,) = blocks("yaml")
    cfg = get_cfg()
    add_pvt_config(cfg)
    cfg.merge_from_other_cfg(type(cfg)(yaml.safe_load(text)))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PVT.VARIANT = "pvt_v2_b0"
    assert set(build_backbone(cfg).output_shape()) == {"p2", "p3", "p4", "p5", "p6"}
    assert GeneralizedRCNN(cfg).roi_heads.box_head is not None


def test_commands_take_a_run_of_default_trainer(project, monkeypatch):
    folder, _, _ = project
    monkeypatch.chdir(folder)
    (text,) = (block for block in blocks("") if block.startswith("pvt-det predict"))
    (folder / "photos").mkdir()
    shutil.copy("photo.jpg", "photos")
    for line in text.splitlines():
        _, name, *options = line.split()
        assert run_command(name, [*options, "--output", folder / name]) == 0
