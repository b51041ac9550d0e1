"""The file of a study: its keys, names and data."""

from __future__ import annotations

import pytest
import yaml

from pvt_det.errors import ConfigError
from pvt_det.recipes import list_studies, study_file
from pvt_det.studies.jobs import study_jobs
from pvt_det.studies.study import load_study, parse_data
from tests.studies.fakes import STUDY


def _write(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def test_values_of_the_file_and_the_command_line(tmp_path):
    study = load_study(
        _write(tmp_path, STUDY),
        data=["things=a.json,b,c.json,d"],
        overrides={"SOLVER.MAX_ITER": "7"},
        pretrain={"epochs": "3"},
    )
    grid = study.grids[0]
    assert (study.name, str(study.output), grid.baseline, grid.seeds) == (
        "study", "output/studies/study", "small", (0, 1),
    )  # fmt: skip
    assert study.data["things"] == {
        "train_json": "a.json",
        "train_images": "b",
        "val_json": "c.json",
        "val_images": "d",
    }
    jobs = study_jobs(study)
    assert [job.name for job in jobs] == [
        "pretrain/trunk",
        "retinanet/large/seed0",
        "retinanet/small/seed0",
        "retinanet/large/seed1",
        "retinanet/small/seed1",
    ]
    pretraining, large, small, *_ = jobs
    assert pretraining.options.epochs == 3
    assert (large.cfg.SOLVER.MAX_ITER, large.cfg.MODEL.WEIGHTS, large.needs) == (7, "", "")
    assert small.cfg.MODEL.WEIGHTS == "output/studies/study/pretrain/trunk/model_best.safetensors"
    assert small.shown_command.startswith("pvt-det train --config-file retinanet_pvt_v2_b0 --output")
    assert "--val-json c.json" in small.shown_command


def test_precedence_of_overrides(tmp_path):
    text = """
overrides: {SOLVER.BASE_LR: 0.1, SOLVER.WEIGHT_DECAY: 0.1, SOLVER.CHECKPOINT_PERIOD: 11}
grids:
  a:
    overrides: {SOLVER.BASE_LR: 0.2, SOLVER.WEIGHT_DECAY: 0.2, SOLVER.CHECKPOINT_PERIOD: 12}
    variants: {plain: {}, heavy: {SOLVER.WEIGHT_DECAY: 0.4}}
    configs: {one: {config: retinanet_pvt_tiny, overrides: {SOLVER.WEIGHT_DECAY: 0.3, SOLVER.CHECKPOINT_PERIOD: 13}}}
"""
    plain, heavy = study_jobs(load_study(_write(tmp_path, text), overrides={"SOLVER.CHECKPOINT_PERIOD": "14"}))
    assert [job.name for job in (plain, heavy)] == ["a/one/plain/seed0", "a/one/heavy/seed0"]
    for job, decay in ((plain, 0.3), (heavy, 0.4)):
        solver = job.cfg.SOLVER
        assert (0.2, decay, 14) == (solver.BASE_LR, solver.WEIGHT_DECAY, solver.CHECKPOINT_PERIOD)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline:", "basline:", r"unknown key grids\.retinanet\.basline\. Did you mean baseline\?"),
        ("overrides: {SOLVER", "overides: {SOLVER", r"unknown key overides\. Did you mean overrides\?"),
        ("MAX_ITER", "MAX_ITR", r"unknown key SOLVER\.MAX_ITR\. Did you mean SOLVER\.MAX_ITER"),
        ("weights: trunk", "wieghts: trunk", "Did you mean weights"),
        ("[things]", "[thing]", r"'thing' is not a data set\. Did you mean things\?"),
        ("data: pictures", "data: picture", r"'picture' is not a data set\. Did you mean pictures\?"),
        ("baseline: small", "baseline: smal", r"'smal' is not a config of the grid\. Did you mean small\?"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "expected different integers, 0 or more"),
        ("seeds: [0, 1]", "seeds: 3", "expected a list"),
        ("large: {config: retinanet_pvt_v2_b1", "large: {config: retinanet_pvt_v2_b9", "retinanet_pvt_v2_b9 is not a"),
        ("      large:", "      a/b:", "'a/b' becomes a folder"),
        ("      large:", "      ..:", "'..' becomes a folder"),
        ("epochs: 1", "epoch: 1", "unknown option. Did you mean epochs"),
        ("model: pvt_v2_b0", "model: pvt_v3_b0", "Did you mean pvt_v2_b0"),
        ('weights: ""}', 'weights: "", seconds_per_iteration: 2}', "Name the machine and the date"),
        ("description: Two", "description: !!python/name:os.system Two", "no code is run"),
        ("grids:\n", "nothing: 1\ngrid:\n", "unknown key nothing"),
        ("{SOLVER: {", "{SEED: 3, SOLVER: {", r": overrides\.SEED: it has no effect here\. Use the key seeds"),
        ("{SOLVER: {", "{OUTPUT_DIR: x, SOLVER: {", r": overrides\.OUTPUT_DIR: it has no effect here\. Use --output"),
        (
            "    baseline",
            "    overrides: {SEED: 3}\n    baseline",
            r"grids\.retinanet\.overrides\.SEED: it has",
        ),
        (
            "    baseline",
            "    variants: {a: {SEED: 3}}\n    baseline",
            r"grids\.retinanet\.variants\.a\.SEED: it has",
        ),
        (
            "    baseline",
            "    variants: {a: 3}\n    baseline",
            r"retinanet\.variants\.a: 3: expected a section of keys",
        ),
        ("trunk}", "trunk, overrides: {SEED: 3}}", r"grids\.retinanet\.configs\.small\.overrides\.SEED: it has no"),
        (
            "trunk}",
            "trunk, overrides: {MODEL.WEIGHTS: x}}",
            r"small\.overrides\.MODEL\.WEIGHTS: .* grids\.retinanet\.configs\.small has the key weights\. Remove one",
        ),
        ("{SOLVER: {", "{MODEL: {WEIGHTS: x}, SOLVER: {", r": overrides\.MODEL\.WEIGHTS: it has no effect here"),
        (
            "weights: trunk",
            "weights: trnk",
            r"trunk: no config .*small has `weights: trnk`\. Did you mean trunk\?",
        ),
        (
            "weights: trunk",
            'weights: ""',
            r"trunk: .* Give a config `weights: trunk`, or remove the pretraining",
        ),
        (
            "{img_size",
            "{output: x, img_size",
            r"trunk\.options\.output: it has no effect here\. Use --output",
        ),
        (
            "{img_size",
            "{data: x, img_size",
            r"options\.data: it has no effect here\. Use the key data of the",
        ),
        ("{img_size", "{model: x, img_size", r"options\.model: it has no effect here\. Use the key model"),
        (
            "val_json: val.json",
            "val_labels: x",
            r"data\.things: it has .* val_labels, val_images\. Expected exactly",
        ),
        (
            "images}",
            "images, folder: x}",
            r"data\.things: it has .* folder\. Expected exactly .* has folder only",
        ),
    ],
)
def test_every_key_is_checked(tmp_path, old, new, message):
    assert old in STUDY
    path = _write(tmp_path, STUDY.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        study_jobs(load_study(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overrides": {"SEED": "3"}}, r"command line: SEED: it has no effect here\. Use the key seeds"),
        ({"overrides": {"OUTPUT_DIR": "x"}}, r"command line: OUTPUT_DIR: it has no effect here\. Use --output"),
        ({"overrides": {"MODEL.WEIGHTS": "x"}}, r"command line: MODEL\.WEIGHTS: .*configs\.large has the key weights"),
        ({"pretrain": {"output": "x"}}, r"--pretrain output: it has no effect here\. Use --output"),
    ],
)
def test_values_of_the_command_line_without_effect_are_refused(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        load_study(_write(tmp_path, STUDY), **given)


def test_weights_by_overrides_and_options_without_a_pretraining(tmp_path):
    path = _write(tmp_path, "grids: {a: {configs: [retinanet_pvt_tiny]}}")
    (job,) = study_jobs(load_study(path, overrides={"MODEL.WEIGHTS": "mine.pth"}))
    assert job.cfg.MODEL.WEIGHTS == "mine.pth"
    with pytest.raises(ConfigError, match=r"--pretrain epochs: .*study\.yaml has no pretraining"):
        load_study(path, pretrain={"epochs": "1"})
    path.write_text("grids: {a: {configs: retinanet_pvt_tiny}}")
    with pytest.raises(ConfigError, match="'retinanet_pvt_tiny': expected a list or a section of keys"):
        load_study(path)


def test_paths_of_data():
    assert parse_data("a=b/c") == ("a", {"folder": "b/c"})
    assert parse_data("a=x.json,y") == ("a", {"val_json": "x.json", "val_images": "y"})
    labels = {"train_labels": "a", "train_images": "b", "val_labels": "c", "val_images": "d"}
    assert parse_data("ade=a,b,c,d") == ("ade", labels)
    for text in ("a", "a=", "=b", "a=b,c,d", "a=b,,c,d"):
        with pytest.raises(ConfigError, match="expected NAME=FOLDER"):
            parse_data(text)
    with pytest.raises(ConfigError, match=r"has no data set .nucleii.\. Did you mean nuclei"):
        load_study(study_file("small"), data=["nucleii=a"])


def test_configs_are_recipes_or_relative_to_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: retinanet_pvt_tiny\nSOLVER: {BASE_LR: 0.25}\n")
    path = _write(tmp_path, "grids: {a: {configs: [mine.yaml, shapes/retinanet_pvt_tiny]}}")
    mine, recipe = study_jobs(load_study(path))
    assert (mine.entry, mine.cfg.SOLVER.BASE_LR, recipe.entry) == ("mine", 0.25, "retinanet_pvt_tiny")


def test_an_unknown_study_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="Did you mean paper_retinanet"):
        load_study("paper_retinante")
    assert yaml.safe_load(study_file("small").read_text())["seeds"] == [0, 1, 2]
    assert "published_checkpoints" in list_studies()
