"""Write the model card of a classifier, next to its weights or in a folder to share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvt_det.classification.config import TrainConfig, config_digest, load_train_config
from pvt_det.classification.files import read_classes, write_config, write_weights
from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.models import list_models
from pvt_det.reports.card_page import (
    Facts,
    Shipped,
    Terms,
    find_shipped,
    require_other,
    write_own_card,
    write_shared_card,
)
from pvt_det.results import Run, load_run
from pvt_det.run_folder import CLASSES_NAME, CLASSIFIER_BEST_NAME, OPTIONS_NAME, SHARED_NAME, best_classifier
from pvt_det.utils.digest import file_digest
from pvt_det.utils.paths import make_folder
from pvt_det.utils.text import counted
from pvt_det.weights import read_checkpoint
from pvt_det.weights.source import locate

_RESNETS = {"resnet18": 18, "resnet50": 50, "resnet101": 101}
_MAX_LISTED_CLASSES = 100  # with more classes, the card gives their number and refers to classes.json


def write_card(cfg: TrainConfig, train: ImageSource, validation: ImageSource) -> None:
    """Write `README.md` next to a run's weights. A file written by someone else is left unchanged.

    Args:
        cfg: The config of the run. Its output folder contains `results.json`.
        train: The training images.
        validation: The validation images.
    """
    folder = Path(cfg.output)
    counts = {"train": f", {counted(len(train), 'image')}", "val": f", {counted(len(validation), 'image')}"}
    run = load_run(folder)
    facts = _facts(run, find_shipped(run, CLASSIFIER_BEST_NAME), cfg, train.classes, counts)
    write_own_card(facts, _usage(cfg, len(train.classes), CLASSIFIER_BEST_NAME))


def write_folder(run: Path, output: Path, terms: Terms, weights: str = "") -> None:
    """Write a folder to share: `README.md`, `model.safetensors`, `options.yaml` and `classes.json`.

    The options contain no paths of this machine.

    Args:
        run: The run folder.
        output: The folder to write. It is created if it does not exist.
        terms: Licenses and authors.
        weights: File, URL or name of the weights. "" selects the best weights of the run.

    Raises:
        CheckpointError: The weights are missing or damaged.
        ConfigError: `output` is the run folder or cannot be written, or the run's `options.yaml` is invalid.
        DataError: The run is not finished, or its `classes.json` is invalid.
    """
    require_other(run, output)
    results, classes = load_run(run), read_classes(run / CLASSES_NAME)
    cfg = load_train_config(run / OPTIONS_NAME)
    source = locate(weights or str(best_classifier(run)))
    notes = config_mismatch(results, cfg)
    shipped = find_shipped(results, source.name if weights else CLASSIFIER_BEST_NAME, file_digest(source), notes)
    make_folder(output)
    tensors = read_checkpoint(source)
    write_weights(output / SHARED_NAME, cfg, classes, tensors)
    private = ("data", "val_labels", "output", "resume", "weights")
    public = dataclasses.replace(cfg, **{name: getattr(TrainConfig, name) for name in private})
    write_config(output, public, classes)
    facts = _facts(results, shipped, cfg, classes, {"train": "", "val": ""})
    write_shared_card(output, facts, terms, _usage(cfg, len(classes), SHARED_NAME))


def config_mismatch(run: Run, cfg: TrainConfig) -> list[str]:
    """Return a sentence if the options in a run folder differ from what the results record.

    Args:
        run: The run.
        cfg: The options in the folder.
    """
    if run.config_sha256 in ("", config_digest(cfg)):
        return []
    return [f"{OPTIONS_NAME} does not contain the options that {run.results_file.name} describes: its digest differs."]


def _facts(run: Run, shipped: Shipped, cfg: TrainConfig, classes: Sequence[str], counts: Mapping[str, str]) -> Facts:
    """Collect the content of the card. `counts` holds a phrase with the number of images for each split."""
    return Facts(
        run=run,
        shipped=shipped,
        start="",
        # Only the last folder: the path on this machine is private.
        data={split: f"{Path(cfg.data).name}/{split}{count}" for split, count in counts.items()},
        classes=tuple(classes) if len(classes) <= _MAX_LISTED_CLASSES else (f"{len(classes):,}, in {CLASSES_NAME}",),
        tags=("pvt",) if cfg.model in list_models() else (),
    )


def _usage(cfg: TrainConfig, classes: int, weights: str) -> str:
    name, side = cfg.model, cfg.img_size
    size = f" --img-size {side}" if side != TrainConfig.img_size else ""
    size += f" --norm {cfg.norm}" if cfg.norm else ""
    module, model = "pvt_det.models", f'create_model("{name}", {classes}, img_size={side})'
    if name not in list_models():
        options = ', norm_layer="groupnorm"' if cfg.norm else ""
        module, model = "timm", f'create_model("{name}", num_classes={classes}{options})'
    return (
        f"To evaluate the weights in this folder, and to train a detector from them:\n\n"
        f"```\npvt-det train-cls --model {name}{size} --data DIR --eval-only --weights {weights}\n"
        f"pvt-det train --config-file {_detector(cfg)} MODEL.WEIGHTS {weights}\n```\n\n"
        f"```python\nfrom {module} import create_model\nfrom pvt_det.weights import load_pretrained\n\n"
        f"model = {model}.eval()\n"
        f'load_pretrained(model, "{weights}").require_whole()\n```'
    )


def _detector(cfg: TrainConfig) -> str:
    """Return the config of a detector that the weights load into, with the keys that differ from its own."""
    if cfg.model in list_models():
        return f"configs/retinanet_{cfg.model}.yaml"
    if cfg.model in _RESNETS:
        return f"configs/retinanet_R_{_RESNETS[cfg.model]}.yaml" + (" MODEL.RESNETS.NORM GN" if cfg.norm else "")
    return f"configs/retinanet_swin_t.yaml MODEL.TIMM.NAME {cfg.model} MODEL.TIMM.OUTPUT_NORM ''"
