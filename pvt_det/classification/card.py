"""A page about a trained classifier, beside its weights; a run as a folder to share, with that page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvt_det.checkpoint import write_atomically
from pvt_det.classification.options import (
    CLASSES_NAME,
    OPTIONS_NAME,
    Options,
    dump_classes,
    dump_options,
    read_options,
)
from pvt_det.classification.trainer import BEST_NAME, metadata_of
from pvt_det.data.imagenet.folders import ImageSource
from pvt_det.errors import DataError
from pvt_det.reports.card_page import CARD_NAME, SHARED_NAME, Facts, Terms, card_page, require_other, write_own_card
from pvt_det.run_folder import Run, load_run
from pvt_det.utils.paths import make_folder
from pvt_det.weights import read_checkpoint, save_safetensors

_NAMED = 100  # of more classes, only the number is told; classes.json has their names


def write_card(options: Options, train: ImageSource, validation: ImageSource) -> None:
    """Write `README.md` beside a run's weights; one that somebody else wrote stays as it is.

    Args:
        options: Of the run, whose output folder has its `results.json`.
        train: The images that it was trained on.
        validation: The images that it was evaluated on.
    """
    folder = Path(options.output)
    counts = {"train": f", {len(train):,} images", "val": f", {len(validation):,} images"}
    facts = _facts(load_run(folder), options, train.classes, counts)
    share = "To share it, with a licence: `pvt-det card . --output share --license SPDX`"
    write_own_card(folder, card_page(facts, Terms(), f"{_use(options, len(train.classes), BEST_NAME)}\n\n{share}"))


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
    about, classes = load_run(run), _classes(run / CLASSES_NAME)
    options = Options(**read_options(run / OPTIONS_NAME))
    make_folder(output)
    tensors = read_checkpoint(weights or str(run / BEST_NAME))
    save_safetensors(output / SHARED_NAME, tensors, metadata_of(options, classes))
    own = ("data", "val_labels", "output", "resume", "weights")
    public = dataclasses.replace(options, **{name: getattr(Options, name) for name in own})
    write_atomically(output / OPTIONS_NAME, dump_options(public))
    write_atomically(output / CLASSES_NAME, dump_classes(classes))
    facts = _facts(about, options, classes, {"train": "", "val": ""})
    write_atomically(output / CARD_NAME, card_page(facts, terms, _use(options, len(classes), SHARED_NAME)))


def _classes(file: Path) -> list[str]:
    try:
        classes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): give the output folder of a run of train-cls.") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{file} is no list of names: give the output folder of a run of train-cls.")
    return classes


def _facts(run: Run, options: Options, classes: Sequence[str], counts: Mapping[str, str]) -> Facts:
    """What the page tells; `counts` has what to say of the number of images of each part."""
    return Facts(
        model=run.model,
        recipe=run.recipe,
        start="",
        seed=run.seed,
        parameters=run.parameters,
        dataset=run.dataset,
        # Where on this machine the data lie is nobody else's business.
        data={part: f"{Path(options.data).name}/{part}{count}" for part, count in counts.items()},
        classes=tuple(classes) if len(classes) <= _NAMED else (f"{len(classes):,}, in {CLASSES_NAME}",),
        metrics=run.metrics,
        environment=run.environment,
        tags=("pvt",),
    )


def _use(options: Options, classes: int, weights: str) -> str:
    name, side = options.model, options.img_size
    size = f" --img-size {side}" if side != Options.img_size else ""
    return (
        f"In this folder, measured again, and as the start of a detector:\n\n"
        f"```\npvt-det train-cls --model {name}{size} --data DIR --eval-only --weights {weights}\n"
        f"pvt-det train --config-file configs/retinanet_{name}.yaml MODEL.WEIGHTS {weights}\n```\n\n"
        f"```python\nfrom pvt_det.models import create_model\nfrom pvt_det.weights import load_pretrained\n\n"
        f'model = create_model("{name}", {classes}, img_size={side}).eval()\n'
        f'load_pretrained(model, "{weights}").require_whole()\n```'
    )
