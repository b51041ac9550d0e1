"""The page about a trained model: what every model's has, whatever it was trained for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pvt_det import __version__
from pvt_det.errors import ConfigError
from pvt_det.run_folder import CARD_NAME
from pvt_det.utils.files import write_atomically
from pvt_det.utils.tables import as_markdown

SHARED_NAME = "model.safetensors"  # the weights, in a folder to share
_LIBRARY = "pvt_det"
_OWN_START = f"---\nlibrary_name: {_LIBRARY}\n"
NOT_STATED = "not stated"
_PIPELINES = {
    "bbox": "object-detection",
    "segm": "image-segmentation",
    "sem_seg": "image-segmentation",
    "panoptic_seg": "image-segmentation",
    "classification": "image-classification",
}
_TITLES = {
    "bbox": "boxes",
    "segm": "masks",
    "sem_seg": "segmentation",
    "panoptic_seg": "panoptic segmentation",
    "classification": "classification",
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """What only the people who trained a model can tell.

    Attributes:
        licence: of the weights, as an SPDX identifier.
        data_licence: of the training data.
        authors: who trained it.
    """

    licence: str = NOT_STATED
    data_licence: str = NOT_STATED
    authors: str = NOT_STATED


@dataclass(frozen=True)
class Facts:
    """What a page tells of a trained model.

    Attributes:
        model: head and backbone.
        recipe: how it was trained.
        start: file of the weights that it started from, or "".
        seed: of the run, where it is known.
        parameters: their number.
        dataset: name of the evaluated data set.
        data: what each part of the data was.
        classes: names; empty where the data set is all that tells them.
        metrics: percent by task and metric, None where there is no ground truth.
        environment: versions and hardware, by name.
        tags: for the hub's search.
    """

    model: str
    recipe: str
    start: str
    seed: int | None
    parameters: int
    dataset: str
    data: Mapping[str, str]
    classes: tuple[str, ...]
    metrics: Mapping[str, Mapping[str, float | None]]
    environment: Mapping[str, Any]
    tags: tuple[str, ...]


def write_own_card(folder: Path, card: str) -> None:
    """Write `README.md` into a run's folder; one that somebody else wrote stays as it is."""
    path = folder / CARD_NAME
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_OWN_START):
        logger.info("%s is not of this package and stays: no page about the model is written.", path)
        return
    write_atomically(path, card)


def require_other(run: Path, output: Path) -> None:
    """Check that a folder to share is not the run's own.

    Raises:
        ConfigError: It is.
    """
    if output.resolve() == run.resolve():
        raise ConfigError(f"{output} is the run's own folder: choose another with --output.")


def card_page(facts: Facts, terms: Terms, use: str) -> str:
    """A page in Markdown about a trained model, with the header that the Hugging Face hub reads.

    Args:
        facts: what is known of it.
        terms: licences and authors.
        use: how to use it, in Markdown.
    """
    data = [f"- {part}: {what}" for part, what in facts.data.items()]
    sections = {
        "Use": use,
        "Results": _metrics(facts),
        "Data": "\n".join([*data, f"- classes: {', '.join(facts.classes) or 'those of the data set'}"]),
        "Training": "\n".join(
            [
                f"- recipe: {facts.recipe}",
                f"- started from: {facts.start or 'random weights'}",
                f"- seed: {'unknown' if facts.seed is None else facts.seed}",
                f"- parameters: {facts.parameters:,}",
            ]
        ),
        "Environment": _environment(facts.environment),
        "Licence": "\n".join(
            [
                f"- of these weights: {terms.licence}",
                f"- of the training data: {terms.data_licence}",
                f"- trained by: {terms.authors}",
                "- the code that they run with, pvt_det: Apache-2.0",
            ]
        ),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"{_header(facts, terms)}\n# {facts.model}\n\nTrained with pvt_det {__version__}.\n\n{body}\n"


def _header(facts: Facts, terms: Terms) -> str:
    measured = [
        {"type": f"{task}/{name}", "value": round(value, 2)}
        for task, values in facts.metrics.items()
        for name, value in values.items()
        if task in _PIPELINES and value is not None and "-" not in name
    ]
    task = next((kind for kind in reversed(_PIPELINES) if kind in facts.metrics), "bbox")
    pipeline = _PIPELINES[task]
    header: dict[str, Any] = {
        "library_name": _LIBRARY,
        "pipeline_tag": pipeline,
        "tags": [*facts.tags, pipeline],
        "license": "other" if terms.licence == NOT_STATED else terms.licence,
    }
    if measured:
        dataset = {"name": facts.dataset, "type": facts.dataset}
        results = [{"task": {"type": pipeline}, "dataset": dataset, "metrics": measured}]
        header["model-index"] = [{"name": facts.model, "results": results}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _metrics(facts: Facts) -> str:
    tables = []
    for task, title in _TITLES.items():
        whole = {name: value for name, value in facts.metrics.get(task, {}).items() if "-" not in name}
        if whole:
            row = {name: "-" if value is None else f"{value:.1f}" for name, value in whole.items()}
            tables.append(as_markdown([{"percent": title, **row}]))
    if not tables:
        return "Not evaluated."
    return f"On {facts.dataset}:\n\n" + "\n\n".join(tables)


def _environment(environment: Mapping[str, Any]) -> str:
    if not environment:
        return "Not written down."
    lines = []
    for name, value in environment.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {name}: {shown}")
    return "\n".join(lines)
