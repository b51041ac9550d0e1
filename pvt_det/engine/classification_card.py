"""A page about a trained classifier, beside its weights."""

from __future__ import annotations

import json
from pathlib import Path

from pvt_det.data.imagenet import ImageSource
from pvt_det.engine.card_page import Facts, Terms, card_page, write_own_card
from pvt_det.engine.classification import BEST_NAME
from pvt_det.engine.classification_options import Options
from pvt_det.evaluation.published import RESULTS_NAME

_NAMED = 100  # of more classes, only the number is told; classes.json has their names


def write_card(options: Options, train: ImageSource, validation: ImageSource) -> None:
    """Write `README.md` beside a run's weights; one that somebody else wrote stays as it is.

    Args:
        options: Of the run, whose output folder has its `results.json`.
        train: The images that it was trained on.
        validation: The images that it was evaluated on.
    """
    folder = Path(options.output)
    results = json.loads((folder / RESULTS_NAME).read_text(encoding="utf-8"))
    classes = train.classes
    facts = Facts(
        model=results["model"],
        recipe=results["recipe"],
        start="",
        seed=results["seed"],
        parameters=results["parameters"],
        dataset=results["dataset"],
        # Where on this machine the data lie is nobody else's business.
        data={
            part: f"{Path(options.data).name}/{part}, {len(images):,} images"
            for part, images in (("train", train), ("val", validation))
        },
        classes=classes if len(classes) <= _NAMED else (f"{len(classes):,}, in classes.json",),
        metrics=results["metrics"],
        environment=results["environment"],
        tags=("pvt",),
    )
    write_own_card(folder, card_page(facts, Terms(), _use(options, len(classes))))


def _use(options: Options, classes: int) -> str:
    name, side = options.model, options.img_size
    size = f" --img-size {side}" if side != Options.img_size else ""
    return (
        f"In this folder, measured again, and as the start of a detector:\n\n"
        f"```\npvt-det train-cls --model {name}{size} --data DIR --eval-only --weights {BEST_NAME}\n"
        f"pvt-det train --config-file configs/retinanet_{name}.yaml MODEL.WEIGHTS {BEST_NAME}\n```\n\n"
        f"```python\nfrom pvt_det.models import create_model\nfrom pvt_det.weights import load_pretrained\n\n"
        f'model = create_model("{name}", {classes}, img_size={side}).eval()\n'
        f'load_pretrained(model, "{BEST_NAME}").require_whole()\n```'
    )
