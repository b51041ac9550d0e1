"""Make Detectron2's DefaultTrainer and DefaultPredictor refuse configs whose keys they do not read.

They would ignore this package's keys without a word: train with SGD instead of AdamW, without the configured
augmentations, or resize test images by another library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, SEM_SEG_HEADS_REGISTRY

from pvt_det.config.architecture import is_segmentor
from pvt_det.config.given_data import Part, given_data
from pvt_det.config.table import get_value
from pvt_det.errors import ConfigError
from pvt_det.utils.text import listed

# The value of each key with which Detectron2 does the same, by the method of DefaultTrainer that does not read it.
_LOOP = {
    "LOGGERS": ["tensorboard"],
    "SOLVER.ACCUMULATE_STEPS": 1,
    "SOLVER.EMA.ENABLED": False,
    "SOLVER.EPOCHS": 0,
    "TEST.EARLY_STOP_PATIENCE": 0,
    "TEST.PRECISION": "fp32",
    "TEST.VALIDATION_LOSS": False,
}
_TRAINING_IMAGES = {
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.COPY_PASTE.PROBABILITY": 0.0,
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "INPUT.CROP_BRANCH.ENABLED": False,
    "INPUT.LARGE_SCALE_JITTER.ENABLED": False,
    "INPUT.MOSAIC.PROBABILITY": 0.0,
    "INPUT.RESIZE_BACKEND": "pil",
    "INPUT.SCALE_RANGE": (1.0, 1.0),
}
_TEST_IMAGES = {"INPUT.RESIZE_BACKEND": "pil", "INPUT.SIZE_DIVISOR_TEST": 1}
_PREDICTOR = _TEST_IMAGES | {"TEST.AUG.ENABLED": False, "TEST.PRECISION": "fp32"}

_USE_TRAINER = """Train with this package's trainer:

    import pvt_det
    pvt_det.train(cfg)
"""
_USE_PARTS = """
or let DefaultTrainer use the parts that read these keys:

    from pvt_det.engine.default_trainer import PVTParts
    class Trainer(PVTParts, DefaultTrainer):
        pass
"""
_USE_PREDICTOR = """Use this package's predictor, which takes images in RGB order:

    from pvt_det import Predictor
    instances = Predictor("output/mine")(image)
"""


@functools.cache
def guard_default_classes() -> None:
    """Let DefaultTrainer and DefaultPredictor check the config that they are given.

    Subclasses are checked as well, except for the keys that belong to a method that they override. A config without
    this package's models is never refused.
    """
    from detectron2.engine.defaults import DefaultPredictor, DefaultTrainer

    build = {name: getattr(DefaultTrainer, name).__func__ for name in _PARTS}

    def check_trainer(trainer: Any, cfg: CfgNode) -> None:
        _check_trainer(cfg, {name for name in _PARTS if getattr(type(trainer), name).__func__ is build[name]})

    def check_test(cls: Any, cfg: CfgNode, *_: Any, **__: Any) -> None:
        stock = cls.build_test_loader.__func__ is build["build_test_loader"]
        _refuse("DefaultTrainer.test", cfg, {"TEST.PRECISION": "fp32"} | (_TEST_IMAGES if stock else {}), _USE_TRAINER)

    DefaultTrainer.__init__ = _checked(DefaultTrainer.__init__, check_trainer)
    DefaultTrainer.test = classmethod(_checked(DefaultTrainer.test.__func__, check_test))
    DefaultPredictor.__init__ = _checked(
        DefaultPredictor.__init__, lambda _, cfg: _refuse("DefaultPredictor", cfg, _PREDICTOR, _USE_PREDICTOR)
    )


def _checked(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return function(*args, **kwargs)

    return checked


def _check_trainer(cfg: CfgNode, stock: set[str]) -> None:
    """Check the config of a trainer whose methods in `stock` are Detectron2's."""
    if not _has_our_model(cfg):
        return
    loop = _LOOP | ({"SOLVER.AMP.PRECISION": "fp16"} if cfg.SOLVER.AMP.ENABLED else {})
    parts: dict[str, Any] = {}
    for name in _PARTS:
        parts |= _PARTS[name](cfg) if name in stock else {}
    fix = _USE_TRAINER + ("" if _ignored(cfg, loop) else _USE_PARTS)
    _refuse("DefaultTrainer", cfg, loop | parts, fix)
    _check_data(cfg)


def _optimizer(cfg: CfgNode) -> dict[str, Any]:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clips_all = clip.ENABLED and clip.CLIP_TYPE == "full_model"
    plain = {"SOLVER.OPTIMIZER": "sgd", "SOLVER.BACKBONE_MULTIPLIER": 1.0}
    return plain | ({"SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm"} if clips_all else {})


def _schedule(cfg: CfgNode) -> dict[str, Any]:
    name = "SOLVER.LR_SCHEDULER_NAME"
    return {name: "WarmupCosineLR"} if get_value(cfg, name) == "WarmupPolyLR" else {}


def _training_images(cfg: CfgNode) -> dict[str, Any]:
    # Detectron2 crops before it resizes, which changes what a segmentor sees.
    return _TRAINING_IMAGES | ({"INPUT.CROP.ENABLED": False} if is_segmentor(cfg) else {})


# Overridable methods of DefaultTrainer, with the keys that Detectron2's own do not read.
_PARTS: Mapping[str, Callable[[CfgNode], dict[str, Any]]] = {
    "build_optimizer": _optimizer,
    "build_lr_scheduler": _schedule,
    "build_train_loader": _training_images,
    "build_test_loader": lambda cfg: _TEST_IMAGES,
}


def _has_our_model(cfg: CfgNode) -> bool:
    """Return whether a part of the config's model is registered by this package."""
    model = cfg.MODEL
    if "PVT" not in model:
        return False
    parts = (
        (META_ARCH_REGISTRY, model.META_ARCHITECTURE),
        (BACKBONE_REGISTRY, model.BACKBONE.NAME),
        (ROI_HEADS_REGISTRY, model.ROI_HEADS.NAME),
        (SEM_SEG_HEADS_REGISTRY, model.SEM_SEG_HEAD.NAME),
    )
    return any(name in registry and registry.get(name).__module__.startswith("pvt_det.") for registry, name in parts)


def _ignored(cfg: CfgNode, same: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys with a value that Detectron2 ignores, and their values."""
    values = {key: get_value(cfg, key) for key in same}
    return {key: value for key, value in values.items() if _plain(value) != _plain(same[key])}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _refuse(user: str, cfg: CfgNode, same: Mapping[str, Any], fix: str) -> None:
    """Raise an error if a key has a value that a class of Detectron2 ignores."""
    if not _has_our_model(cfg) or not (ignored := _ignored(cfg, same)):
        return
    given = listed([f"{key} {value}" for key, value in ignored.items()], len(ignored))
    settings = " ".join(f"{key} {same[key]}" for key in ignored)
    raise ConfigError(
        f"Detectron2's {user} would ignore {given}. {fix}\nor, if you want what Detectron2 does, set {settings}."
    )


def _check_data(cfg: CfgNode) -> None:
    """Raise an error if data given by its files has not been registered: DefaultTrainer would use other data."""
    parts: tuple[tuple[Part, Sequence[str]], ...] = (("TRAIN", cfg.DATASETS.TRAIN), ("VAL", cfg.DATASETS.TEST))
    for part, names in parts:
        given = given_data(cfg, part)
        files = [("JSON", "json_file", data.json_file) for data in given]
        files += [("LABELS", "sem_seg_root", data.labels) for data in given]
        for kind, attribute, file in files:
            if file and not any(MetadataCatalog.get(name).get(attribute) == file for name in names):
                raise ConfigError(
                    f"Detectron2's DefaultTrainer would ignore DATASETS.{part}_{kind} {file}, because no data set of "
                    f"DATASETS.{'TRAIN' if part == 'TRAIN' else 'TEST'} is registered from it. Call "
                    "pvt_det.data.sets.register_datasets(cfg) before freezing the config."
                )
