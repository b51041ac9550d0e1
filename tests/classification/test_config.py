"""The published recipe of every variant, config files and flags, and errors in them."""

from __future__ import annotations

import dataclasses

import pytest

from pvt_det.classification import TrainConfig, argument_parser, load_train_config, setup
from pvt_det.classification.config import check_same_run, dump_train_config
from pvt_det.errors import ConfigError
from pvt_det.models import list_models

_LARGE = {"pvt_medium", "pvt_large", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5"}
_COMMON = {
    "epochs": 300, "batch_size": 1024, "lr": 5e-4, "lr_batch": 512, "warmup_epochs": 5, "warmup_lr": 1e-6,
    "min_lr": 1e-5, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "mixup": 0.8, "cutmix": 1.0,
    "mix_prob": 1.0, "mix_switch_prob": 0.5, "label_smoothing": 0.1, "rand_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4, "erase_prob": 0.25, "erase_mode": "pixel", "interpolation": "bicubic", "repeats": 3,
    "img_size": 224, "crop_pct": 0.875, "crop_scale": 0.08, "flip": 0.5, "ema_decay": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("model", list_models())
def test_published_recipe(repo_root, model):
    cfg = load_train_config(repo_root / f"configs/classification/{model}.yaml")
    assert cfg.model == model
    assert (cfg.drop_path_rate, cfg.clip_grad) == ((0.3, 1.0) if model in _LARGE else (0.1, 0.0))
    assert {name: getattr(cfg, name) for name in _COMMON} == _COMMON
    assert cfg.scaled_lr() == pytest.approx(1e-3)


def test_small_image_recipe_is_valid(repo_root):
    cfg = load_train_config(repo_root / "configs/classification/pvt_tiny_64px.yaml")
    assert (cfg.model, cfg.img_size) == ("pvt_tiny", 64)
    assert cfg.scaled_lr() == cfg.lr


def _setup(*words):
    return setup(argument_parser().parse_words(words))


def test_flags_override_the_file_and_keep_their_types(tmp_path):
    (tmp_path / "a.yaml").write_text("model: pvt_small\nlr: 1e-3\nepochs: 30\nclip_grad: 1\ncompile: true\n")
    flags = ("--epochs", "40", "--min-lr", "0", "--no-compile", "--channels-last")
    cfg = _setup("--config-file", str(tmp_path / "a.yaml"), *flags)
    assert (cfg.lr, cfg.epochs, cfg.min_lr, cfg.clip_grad) == (1e-3, 40, 0.0, 1.0)
    assert isinstance(cfg.clip_grad, float)
    assert (cfg.compile, cfg.channels_last) == (False, True)


def test_dumped_config_loads_unchanged(tmp_path):
    cfg = TrainConfig(model="pvt_v2_b1", rand_augment="", eps=1e-9, data="Bilder/ä: b")
    (tmp_path / "options.yaml").write_text(dump_train_config(cfg))
    assert load_train_config(tmp_path / "options.yaml") == cfg


@pytest.mark.parametrize(
    ("yaml_lines", "message"),
    [
        ("lern_rate: 1", r"a.yaml: lern_rate: unknown option"),
        ("warmup_epoch: 1", r"Did you mean warmup_epochs"),
        ("epochs: 3.5", r"a.yaml: epochs = 3.5: expected an integer, such as 300"),
        ("epochs: true", r"epochs = True: expected an integer"),
        ("lr: fast", r"lr = 'fast': expected a number"),
        ("compile: 1", r"compile = 1: expected true or false"),
        ("model: [pvt_small]", r"model = \['pvt_small'\]: expected a string"),
        ("epochs: 3\nepochs: 4", r"line 3: epochs appears twice, first in line 2"),
        ("- epochs", r"expected lines such as `epochs: 300`"),
        ("epochs: !!python/object/apply:os.getcwd []", r"line 2: tag .*os.getcwd is refused"),
        ("epochs: &a {x: 1}\nlr: *a", r"line 3: alias \*a is refused"),
        ("model: " + "[" * 5000, r"nested too deep"),
        ("model: pvt_smal", r"model = 'pvt_smal': Did you mean pvt_small"),
        ("epochs: 0", r"epochs = 0: expected a number at least 1"),
        ("flip: 1.5", r"flip = 1.5: expected a number from 0 to 1"),
        ("lr: .inf", r"lr = inf: expected a finite number"),
        ("amp: fp6", r"amp = 'fp6': Did you mean fp16"),
        ("warmup_epochs: 300", r"warmup_epochs = 300 is not less than epochs = 300"),
        ("checkpoint_stages: 1,5", r"checkpoint_stages = '1,5': expected numbers from 1 to 4"),
        ("batch_size: 7", r"batch_size = 7: mixup and cutmix need an even number"),
        ("resume: yesterday", r"resume = 'yesterday'"),
        ("eval_only: true", r"--eval-only and --weights SOURCE must be used together"),
    ],
)
def test_invalid_file_raises_config_error(tmp_path, yaml_lines, message):
    model = "" if "model" in yaml_lines or yaml_lines.startswith("-") else "model: pvt_small\n"
    (tmp_path / "a.yaml").write_text(model + yaml_lines)
    with pytest.raises(ConfigError, match=message):
        load_train_config(tmp_path / "a.yaml")


def test_missing_file_raises_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml cannot be read: it does not exist"):
        load_train_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lable-smoothing", "0.1"], "Did you mean --label-smoothing"),
        (["--epochs", "many"], r"--epochs = 'many': expected an integer"),
        (["--erase-mode", "pixels"], r"erase_mode = 'pixels': Did you mean pixel"),
    ],
)
def test_invalid_flag_raises_config_error(words, message):
    with pytest.raises(ConfigError, match=message):
        _setup("--model", "pvt_small", *words)


def test_resume_rejects_changed_options():
    cfg = TrainConfig(model="pvt_small", data="a", workers=4)
    saved = dataclasses.asdict(cfg)
    check_same_run(saved, dataclasses.replace(cfg, data="b", workers=1, resume=True))
    with pytest.raises(ConfigError, match=r"lr was 0.0005 and is 0.001, seed was 0 and is 3"):
        check_same_run(saved, dataclasses.replace(cfg, lr=1e-3, seed=3))


def test_published_recipe_of_the_model_is_the_default():
    assert _setup("--model", "pvt_large", "--data", "x").drop_path_rate == 0.3
    assert _setup("--model", "pvt_large", "--drop-path-rate", "0.2").drop_path_rate == 0.2
    assert _setup("--model", "pvt_small").clip_grad == 0.0


@pytest.mark.filterwarnings("error")
def test_resume_is_a_flag(tmp_path):
    assert not _setup("--model", "pvt_small").resume
    assert _setup("--resume", "--model", "pvt_small").resume
    (tmp_path / "a.yaml").write_text("model: pvt_small\nresume: true\n")
    assert load_train_config(tmp_path / "a.yaml").resume
    # Written by earlier versions.
    (tmp_path / "a.yaml").write_text("model: pvt_small\nresume: ''\n")
    assert not load_train_config(tmp_path / "a.yaml").resume


def test_deprecated_names_work_with_a_warning(tmp_path):
    with pytest.warns(FutureWarning, match=r"--resume = 'auto' is deprecated .*Use --resume"):
        assert _setup("--model", "pvt_small", "--resume", "auto").resume
    (tmp_path / "a.yaml").write_text("model: pvt_small\nresume: auto\nepochs: 30\n")
    with pytest.warns(FutureWarning, match=r"a\.yaml: resume = 'auto' is deprecated .*resume: true in a config file"):
        assert load_train_config(tmp_path / "a.yaml").resume
    (tmp_path / "a.yaml").write_text("model: pvt_small\nepochs: 30\n")
    with pytest.warns(FutureWarning, match=r"--config is deprecated .*Use --config-file\."):
        assert _setup("--config", str(tmp_path / "a.yaml")).epochs == 30


def test_help_hides_deprecated_names():
    help_text = argument_parser().format_help()
    assert "--config-file FILE" in help_text
    assert "--config FILE" not in help_text
