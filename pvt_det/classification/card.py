"""The model card of a classifier: beside its weights, and in a folder to share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvt_det.classification.config import TrainConfig, load_train_config
from pvt_det.classification.files import read_classes, write_config, write_weights
from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.reports.card_page import SHARED_NAME, Facts, Terms, card_page, require_other, write_own_card
from pvt_det.run_folder import (
    CARD_NAME,
    CLASSES_NAME,
    CLASSIFIER_BEST_NAME,
    OPTIONS_NAME,
    Run,
    best_classifier,
    load_run,
)
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder
from pvt_det.weights import read_checkpoint

_NAMED = 100  # of more classes, only the number is told; classes.json has their names


def write_card(cfg: TrainConfig, train: ImageSource, validation: ImageSource) -> None:
    """Write `README.md` beside a run's weights; one that somebody else wrote stays as it is.

    Args:
        cfg: The config of the run, whose output folder has its `results.json`.
        train: The images that it was trained on.
        validation: The images that it was evaluated on.
    """
    folder = Path(cfg.output)
    counts = {"train": f", {len(train):,} images", "val": f", {len(validation):,} images"}
    facts = _facts(load_run(folder), cfg, train.classes, counts)
    write_own_card(facts, _use(cfg, len(train.classes), CLASSIFIER_BEST_NAME))


def write_folder(run: Path, output: Path, terms: Terms, weights: str = "") -> None:
    """Write `README.md`, `model.safetensors`, `options.yaml` without paths of this machine, and `classes.json`.

    Args:
        run: A run's output folder.
        output: Where to; made where missing.
        terms: Licences and authors.
        weights: "" takes the run's best.

    Raises:
        CheckpointError: The weights are missing or damaged.
        ConfigError: The folder is the run's own, or cannot be made or written in; the run's options are broken.
        DataError: The run was not finished, or its classes are broken.
    """
    require_other(run, output)
    about, classes = load_run(run), read_classes(run / CLASSES_NAME)
    cfg = load_train_config(run / OPTIONS_NAME)
    make_folder(output)
    tensors = read_checkpoint(weights or str(best_classifier(run)))
    write_weights(output / SHARED_NAME, cfg, classes, tensors)
    own = ("data", "val_labels", "output", "resume", "weights")
    public = dataclasses.replace(cfg, **{name: getattr(TrainConfig, name) for name in own})
    write_config(output, public, classes)
    facts = _facts(about, cfg, classes, {"train": "", "val": ""})
    write_atomically(output / CARD_NAME, card_page(facts, terms, _use(cfg, len(classes), SHARED_NAME)))


def _facts(run: Run, cfg: TrainConfig, classes: Sequence[str], counts: Mapping[str, str]) -> Facts:
    """What the page tells; `counts` has what to say of the number of images of each part."""
    return Facts(
        run=run,
        start="",
        # Where on this machine the data lie is nobody else's business.
        data={part: f"{Path(cfg.data).name}/{part}{count}" for part, count in counts.items()},
        classes=tuple(classes) if len(classes) <= _NAMED else (f"{len(classes):,}, in {CLASSES_NAME}",),
        tags=("pvt",),
    )


def _use(cfg: TrainConfig, classes: int, weights: str) -> str:
    name, side = cfg.model, cfg.img_size
    size = f" --img-size {side}" if side != TrainConfig.img_size else ""
    return (
        f"In this folder, measured again, and as the start of a detector:\n\n"
        f"```\npvt-det train-cls --model {name}{size} --data DIR --eval-only --weights {weights}\n"
        f"pvt-det train --config-file configs/retinanet_{name}.yaml MODEL.WEIGHTS {weights}\n```\n\n"
        f"```python\nfrom pvt_det.models import create_model\nfrom pvt_det.weights import load_pretrained\n\n"
        f'model = create_model("{name}", {classes}, img_size={side}).eval()\n'
        f'load_pretrained(model, "{weights}").require_whole()\n```'
    )
