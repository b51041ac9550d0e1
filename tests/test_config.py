"""Tests of `load_config`: what it accepts, what it refuses, and that it never executes code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvt_det.config import get_config, load_config, validate_config
from pvt_det.config.digest import config_digest, recipe_digest
from pvt_det.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path):
    def _write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def refusal(path: Path, overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


# --- merging ---------------------------------------------------------------------------------------------------------
def test_defaults_are_valid_and_not_shared():
    cfg = get_config()
    validate_config(cfg)
    cfg.SOLVER.BASE_LR = 7.0
    assert get_config().SOLVER.BASE_LR != 7.0


def test_overrides_take_precedence_over_file_and_file_over_defaults(write):
    path = write("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7, STEPS: []}\nMODEL: {PVT: {VARIANT: pvt_tiny}}\n")
    cfg = load_config(path, ["SOLVER.MAX_ITER", "9"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.MODEL.PVT.VARIANT) == (0.5, 9, "pvt_tiny")
    assert cfg.SOLVER.GAMMA == get_config().SOLVER.GAMMA
    assert not cfg.is_frozen()


def test_later_bases_and_the_file_itself_take_precedence(tmp_path, write):
    (tmp_path / "base").mkdir()
    write("SOLVER: {BASE_LR: 1.0, GAMMA: 0.5, MOMENTUM: 0.1}\n", "base/root.yaml")
    write("_BASE_: root.yaml\nSOLVER: {BASE_LR: 2.0, GAMMA: 0.6}\n", "base/one.yaml")
    write("SOLVER: {BASE_LR: 3.0}\n", "base/two.yaml")
    cfg = load_config(write("_BASE_: [base/one.yaml, base/two.yaml]\nSOLVER: {MAX_ITER: 4, STEPS: []}\n"))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA, cfg.SOLVER.MOMENTUM, cfg.SOLVER.MAX_ITER) == (3.0, 0.6, 0.1, 4)
    assert load_config(write("_BASE_: base/one.yaml\nSOLVER: {BASE_LR: 9}\n")).SOLVER.BASE_LR == 9.0


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.BASE_LR", "1e-4", 1e-4),  # YAML 1.1 reads this as a string
        ("SOLVER.BASE_LR", "1", 1.0),
        ("SOLVER.STEPS", "(20000, 30000)", (20000, 30000)),
        ("SOLVER.STEPS", "[5]", (5,)),
        ("SOLVER.AMP.ENABLED", "true", True),
        ("SOLVER.WEIGHT_DECAY_BIAS", "None", None),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0", 0.0),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1e999", float("inf")),
        ("MODEL.WEIGHTS", "123", "123"),
        ("MODEL.WEIGHTS", "pvt://pvt_small", "pvt://pvt_small"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8.5], [16], [32], [64], [128]]", [[8.5], [16], [32], [64], [128]]),
        ("MODEL.RPN.BOUNDARY_THRESH", "-1", -1),
        ("DATASETS.TRAIN", "['a', 'b']", ("a", "b")),
        ("SEED", "-1", -1),
    ],
)
def test_values_are_parsed_alike_in_files_and_on_the_command_line(write, key, text, value):
    base = f"_BASE_: {ROOT}/configs/retinanet_pvt_tiny.yaml\nSEED: 5\n"
    lines, indent = "", ""
    for name in key.split("."):
        lines += f"{indent}{name}:\n"
        indent += "  "
    write(base, "base.yaml")
    in_file = load_config(write(f"_BASE_: base.yaml\n{lines[:-1]} {text}\n")) if key != "MODEL.WEIGHTS" else None
    on_command_line = load_config(write(base), [key, text])
    for cfg in filter(None, (in_file, on_command_line)):
        node = cfg
        for name in key.split("."):
            node = node[name]
        assert node == value
        assert type(node) is type(value)


def test_dump_can_be_loaded_again(write):
    cfg = load_config(ROOT / "configs/cascade_mask_rcnn_pvt_small.yaml", ["SOLVER.BETAS", "(0.8, 0.99)"])
    assert "*id001" in cfg.dump()  # YAML aliases of tuples that Detectron2's defaults share
    again = load_config(write(cfg.dump()))
    assert again == cfg
    assert type(again.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS[1]) is tuple


# --- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MODEL: {NUM_CLASSES: 3}", ["unknown key MODEL.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"]),
        ("solver: {BASE_LR: 1.0}", ["unknown key solver", "SOLVER"]),
        ("SOLVER: 3", ["SOLVER = 3", "section"]),
        ("SOLVER: {MAX_ITER: {A: 1}}", ["SOLVER.MAX_ITER", "an integer"]),
        ("SOLVER: {MAX_ITER: 2.5}", ["SOLVER.MAX_ITER = 2.5", "an integer"]),
        ("SOLVER: {MAX_ITER: true}", ["SOLVER.MAX_ITER = True", "an integer"]),
        ("SOLVER: {MAX_ITER: 0}", ["SOLVER.MAX_ITER = 0", "an integer, 1 to"]),
        ("SOLVER: {STEPS: [10, -20]}", ["SOLVER.STEPS = (10, -20)", "integers, 1 to"]),
        ("SOLVER: {STEPS: 10}", ["SOLVER.STEPS = 10", "a list", "[10]"]),
        ("SOLVER: {BASE_LR: .nan}", ["SOLVER.BASE_LR", "finite"]),
        ("SOLVER: {BASE_LR: .inf}", ["SOLVER.BASE_LR", "finite"]),
        ("SOLVER: {BETAS: [0.9, .nan]}", ["SOLVER.BETAS", "finite"]),
        ("SOLVER: {MAX_ITER: " + "9" * 400 + "}", ["SOLVER.MAX_ITER", "finite"]),
        ("SOLVER: {MAX_ITER: " + "9" * 5000 + "}", ["digits"]),
        ("SEED: 2020-13-45", ["month"]),
        ("MODEL: {MASK_ON: 1}", ["MODEL.MASK_ON = 1", "true or false"]),
        ("DATASETS: {TRAIN: [1]}", ["DATASETS.TRAIN", "a string"]),
        ("TEST: {EXPECTED_RESULTS: [[2020-01-01]]}", ["TEST.EXPECTED_RESULTS"]),
        ("SEED: 1\nSEED: 2", ["line 2", "SEED appears twice", "line 1"]),
        ("SEED: &a 1\nVIS_PERIOD: *a", ["line 2", "alias *a"]),
        ("SOLVER: {STEPS: &a [1, *a]}", ["alias *a"]),
        ("_BASE_: &a [x]\nDATASETS: {TRAIN: &b [*a, *a], TEST: [*b, *b]}", ["alias *b"]),
        ("SEED: !!int 1", ["tag", "int"]),
        ("1: 2", ["not a string"]),
        ("# only a comment", ["found nothing"]),
        ("just words", ["found a str"]),
        ("SEED: [1", ["line "]),
        ("[" * 5000, ["nested too deep"]),
        ("_BASE_: 3", ["_BASE_ = 3", "file name"]),
        ("_BASE_: null", ["_BASE_", "file name"]),
        ("_BASE_: nowhere.yaml", ["nowhere.yaml", "named by _BASE_ in"]),
        ("_BASE_: base.py", ["base.py", "Python configs are not run"]),
        ("_BASE_: .", ["named by _BASE_", "is a folder. Expected a .yaml file"]),
        ("VERSION: 1", ["VERSION = 1", "expected 2"]),
    ],
)
def test_broken_files_are_reported_with_their_name(write, text, expected):
    path = write(text + "\n")
    message = refusal(path)
    assert str(path) in message
    for words in expected:
        assert words.lower() in message.lower()
    assert len(message) < 600


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL.PVT.VARIANT", "pvt_tinny", "Did you mean pvt_tiny?"),
        ("MODEL.META_ARCHITECTURE", "RetinaNett", "Did you mean"),
        ("MODEL.BACKBONE.NAME", "build_pvt", "expected one of"),
        ("MODEL.ROI_HEADS.NAME", "PVTROIHead", "Did you mean"),
        ("MODEL.RETINANET.LOSS_NORMALIZER", "mean", "ema, batch"),
        ("INPUT.RESIZE_BACKEND", "opencv", "pil, cv2"),
        ("INPUT.RANDOM_FLIP", "both", "horizontal"),
        ("SOLVER.OPTIMIZER", "adam", "Did you mean adamw?"),
        ("SOLVER.AMP.PRECISION", "fp8", "bf16, fp16"),
        ("TEST.EVALUATOR", "coco", "hotcoco, pycocotools"),
        ("DATASETS.ON_ERROR", "ignore", "stop, skip, strict"),
        ("DATASETS.CHECK", "quick", "full, fast, off"),
        ("MODEL.PVT.FROZEN_STAGES", "5", "0 to 4"),
        ("MODEL.PVT.CHECKPOINT_STAGES", "[0, 1]", "1, 2, 3, 4"),
        ("MODEL.PVT.OUT_FEATURES", "['stage2', 'stage1']", "in this order"),
        ("MODEL.PVT.OUT_FEATURES", "[]", "stage1"),
        ("MODEL.PVT.DROP_PATH_RATE", "1.0", "less than 1"),
        ("MODEL.PVT.PRETRAIN_IMG_SIZE", "100", "multiple of 32"),
        ("SOLVER.BETAS", "(0.9, 1.0)", "less than 1"),
        ("SOLVER.ACCUMULATE_STEPS", "0", "1 to"),
        ("MODEL.PIXEL_STD", "[1, 1]", "3 number"),
        ("MODEL.PIXEL_STD", "[1, 0, 1]", "above 0"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16]]", "expected 1 list or 5"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[]]", "above 0"),
        ("INPUT.MIN_SIZE_TRAIN", "[]", "a list of 1 or more integers"),
        ("INPUT.CROP_BRANCH.SIZE", "(600, 384)", "2 integers, 1 to 20,000, in ascending order"),
        ("INPUT.MOSAIC.PROBABILITY", "1.5", "0 to 1"),
        ("INPUT.MOSAIC.SCALE", "(1.5, 0.5)", "in ascending order"),
        ("INPUT.COPY_PASTE.PROBABILITY", "0.5", "MODEL.MASK_ON"),
        ("INPUT.LARGE_SCALE_JITTER.SIZE", "(0, 10)", "2 integers, 1 to"),
        ("INPUT.SIZE_DIVISOR_TEST", "32", "SemanticSegmentor alone supports this"),
    ],
)
def test_values_out_of_range_are_refused(key, value, expected):
    message = refusal(ROOT / "configs/retinanet_pvt_tiny.yaml", [key, value])
    assert key in message
    assert expected in message


def test_file_that_inherits_from_itself_is_refused(write, tmp_path):
    assert "self.yaml → " in refusal(write("_BASE_: self.yaml\n", "self.yaml"))


def test_missing_file_suggests_similar_names(tmp_path):
    message = refusal(ROOT / "configs/retinanet_pvt_tinny.yaml")
    assert "Did you mean retinanet_pvt_tiny.yaml" in message
    assert "this config is a folder" in refusal_of_folder(tmp_path)


def refusal_of_folder(tmp_path) -> str:
    (tmp_path / "folder.yaml").mkdir()
    return refusal(tmp_path / "folder.yaml")


def test_circular_links_and_binary_files_are_refused(tmp_path):
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "loop.yaml" in refusal(tmp_path / "loop.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00S")
    assert "not a text file" in refusal(tmp_path / "bytes.yaml")


def test_overrides_with_equals_signs():
    cfg = load_config(ROOT / "configs/retinanet_pvt_tiny.yaml", ["SEED=5", "OUTPUT_DIR", "a=b", "MODEL.WEIGHTS="])
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == (5, "a=b", "")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
        (["SOLVER.MAX_ITR=3"], "SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER=x"], "an integer"),
        (["SOLVER.MAX_ITR", "3"], "SOLVER.MAX_ITER"),
        (["SOLVER", "3"], "section"),
        (["SOLVER..MAX_ITER", "3"], "unknown key"),
        (["SOLVER.MAX_ITER", "__import__('os').getpid()"], "an integer"),
        (["SOLVER.MAX_ITER", "((((" * 3000], "an integer"),
    ],
)
def test_invalid_overrides_are_refused(overrides, expected):
    message = refusal(ROOT / "configs/retinanet_pvt_tiny.yaml", overrides)
    assert message.startswith("command line")
    assert expected in message
    assert len(message) < 600


LEAF = (ROOT / "configs/mask_rcnn_pvt_large.yaml").read_text().replace("base/", f"{ROOT}/configs/base/")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(LEAF)), st.integers(0, 12), st.text(max_size=8), st.booleans())
def test_mutated_files_load_or_are_refused(tmp_path, start, length, insert, swap):
    lines = LEAF.splitlines(keepends=True)
    text = "".join(lines[::-1]) if swap else LEAF
    path = tmp_path / "mutated.yaml"
    path.write_text(text[:start] + insert + text[start + length :], encoding="utf-8", newline="")
    try:
        cfg = load_config(path)
    except ConfigError:
        return
    assert yaml.safe_load(cfg.dump())["MODEL"]["META_ARCHITECTURE"]


def test_config_can_be_imported_first():
    """Config, models and builders import each other, so a fresh process checks for circular imports."""
    code = (
        "from pvt_det.config import load_config; print(load_config('configs/retinanet_pvt_tiny.yaml').SOLVER.MAX_ITER)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "87960", done.stderr


def test_output_folder_of_a_run_is_that_of_its_config(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    config = tmp_path / "run/config.yaml"
    config.write_text("OUTPUT_DIR: .\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: run/config.yaml\n")
    assert load_config(config).OUTPUT_DIR == load_config(tmp_path / "mine.yaml").OUTPUT_DIR == str(config.parent)
    assert load_config(config, ["OUTPUT_DIR", "."]).OUTPUT_DIR == "."
    monkeypatch.chdir(tmp_path)
    assert load_config("run/config.yaml").OUTPUT_DIR == "run"


# --- digests ---------------------------------------------------------------------------------------------------------
def test_digest_ignores_keys_without_effect_on_the_result(tmp_path):
    cfg = load_config(ROOT / "configs/retinanet_pvt_tiny.yaml")
    moved = ["OUTPUT_DIR", "elsewhere", "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "1", "MODEL.WEIGHTS", "a.pth"]
    assert config_digest(load_config(ROOT / "configs/retinanet_pvt_tiny.yaml", moved)) == config_digest(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert config_digest(load_config(tmp_path / "config.yaml")) == config_digest(cfg)


@pytest.mark.parametrize(
    ("key", "value", "is_same_recipe"),
    [
        ("MODEL.PVT.VARIANT", "pvt_small", False),
        ("SOLVER.BASE_LR", "0.5", False),
        ("INPUT.MIN_SIZE_TEST", "640", False),
        ("TEST.AUG.ENABLED", "True", False),
        ("SEED", "7", True),
        ("MODEL.RETINANET.NUM_CLASSES", "3", True),
    ],
)
def test_digest_of_config_and_of_recipe(key, value, is_same_recipe):
    cfg = load_config(ROOT / "configs/retinanet_pvt_tiny.yaml")
    changed = load_config(ROOT / "configs/retinanet_pvt_tiny.yaml", [key, value])
    assert config_digest(changed) != config_digest(cfg)
    assert (recipe_digest(changed) == recipe_digest(cfg)) is is_same_recipe


def test_recipe_is_the_same_with_accumulated_batches():
    cfg = load_config(ROOT / "configs/retinanet_pvt_tiny.yaml")
    half = [str(cfg.SOLVER.IMS_PER_BATCH // 2), "SOLVER.ACCUMULATE_STEPS", "2"]
    changed = load_config(ROOT / "configs/retinanet_pvt_tiny.yaml", ["SOLVER.IMS_PER_BATCH", *half])
    assert recipe_digest(changed) == recipe_digest(cfg)
    assert config_digest(changed) != config_digest(cfg)
