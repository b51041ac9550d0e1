"""The page about a trained model: what every model's has, whatever it was trained for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pvt_det import __version__
from pvt_det.errors import ConfigError
from pvt_det.run_folder import CARD_NAME, Run
from pvt_det.utils.files import write_atomically
from pvt_det.utils.tables import as_markdown

SHARED_NAME = "model.safetensors"  # the weights, in a folder to share
_LIBRARY = "pvt_det"
_OWN_START = f"---\nlibrary_name: {_LIBRARY}\n"
NOT_STATED = "not stated"
# The hub's name and the title of each task.
_TASKS = {
    "bbox": ("object-detection", "boxes"),
    "segm": ("image-segmentation", "masks"),
    "sem_seg": ("image-segmentation", "segmentation"),
    "panoptic_seg": ("image-segmentation", "panoptic segmentation"),
    "classification": ("image-classification", "classification"),
}
_SHARE = "To share it, with a licence: `pvt-det card . --output share --license SPDX`"
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
        run: The run as it was finished.
        start: File of the weights that it started from, or "".
        data: What each part of the data was.
        classes: Names; empty where the data set is all that tells them.
        tags: For the hub's search.
    """

    run: Run
    start: str
    data: Mapping[str, str]
    classes: Sequence[str]
    tags: Sequence[str]


def write_own_card(facts: Facts, use: str) -> None:
    """Write `README.md` into a run's folder; one that somebody else wrote stays as it is.

    Args:
        facts: What is known of the model.
        use: How to use it in that folder, in Markdown.
    """
    path = facts.run.folder / CARD_NAME
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_OWN_START):
        logger.info("%s is not of this package and stays: no page about the model is written.", path)
        return
    write_atomically(path, card_page(facts, Terms(), f"{use}\n\n{_SHARE}"))


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
    run, data = facts.run, [f"- {part}: {what}" for part, what in facts.data.items()]
    sections = {
        "Use": use,
        "Results": _metrics(run),
        "Data": "\n".join([*data, f"- classes: {', '.join(facts.classes) or 'those of the data set'}"]),
        "Training": "\n".join(
            [
                f"- recipe: {run.recipe}",
                f"- started from: {facts.start or 'random weights'}",
                f"- seed: {'unknown' if run.seed is None else run.seed}",
                f"- parameters: {run.parameters:,}",
            ]
        ),
        "Environment": _environment(run.environment),
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
    return f"{_header(facts, terms)}\n# {run.model}\n\nTrained with pvt_det {__version__}.\n\n{body}\n"


def _header(facts: Facts, terms: Terms) -> str:
    run = facts.run
    measured = [
        {"type": f"{task}/{name}", "value": round(value, 2)}
        for task, values in run.metrics.items()
        for name, value in values.items()
        if task in _TASKS and value is not None and "-" not in name
    ]
    pipeline = _TASKS[next((task for task in reversed(_TASKS) if task in run.metrics), "bbox")][0]
    header: dict[str, Any] = {
        "library_name": _LIBRARY,
        "pipeline_tag": pipeline,
        "tags": [*facts.tags, pipeline],
        "license": "other" if terms.licence == NOT_STATED else terms.licence,
    }
    if measured:
        dataset = {"name": run.dataset, "type": run.dataset}
        results = [{"task": {"type": pipeline}, "dataset": dataset, "metrics": measured}]
        header["model-index"] = [{"name": run.model, "results": results}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _metrics(run: Run) -> str:
    tables = []
    for task, (_, title) in _TASKS.items():
        whole = {name: value for name, value in run.metrics.get(task, {}).items() if "-" not in name}
        if whole:
            row = {name: "-" if value is None else f"{value:.1f}" for name, value in whole.items()}
            tables.append(as_markdown([{"percent": title, **row}]))
    if not tables:
        return "Not evaluated."
    return f"On {run.dataset}:\n\n" + "\n\n".join(tables)


def _environment(environment: Mapping[str, Any]) -> str:
    if not environment:
        return "Not written down."
    lines = []
    for name, value in environment.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {name}: {shown}")
    return "\n".join(lines)
