"""Render the model card of a trained model, for any task."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pvt_det import __version__
from pvt_det.errors import ConfigError
from pvt_det.reports.defaults import NOT_STATED
from pvt_det.results import Checkpoint, Run, find_metrics
from pvt_det.run_folder import CARD_NAME, SHARED, require_kind
from pvt_det.utils.digest import file_digest
from pvt_det.utils.files import write_atomically
from pvt_det.utils.signing import SIGNATURE_NAME
from pvt_det.utils.tables import as_markdown, markdown_text

_LIBRARY = "pvt_det"
_OWN_START = f"---\nlibrary_name: {_LIBRARY}\n"
# Name on the Hugging Face Hub and title of each task.
_TASKS = {
    "bbox": ("object-detection", "boxes"),
    "segm": ("image-segmentation", "masks"),
    "sem_seg": ("image-segmentation", "segmentation"),
    "panoptic_seg": ("image-segmentation", "panoptic segmentation"),
    "classification": ("image-classification", "classification"),
}
_SHARE = "Share the model with a license: `pvt-det card . --output share --license SPDX`"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """What only the authors of a model can state.

    Attributes:
        license: SPDX identifier of the license of the weights.
        data_license: SPDX identifier of the license of the training data.
        authors: Names of the people who trained the model.
    """

    license: str = NOT_STATED
    data_license: str = NOT_STATED
    authors: str = NOT_STATED


@dataclass(frozen=True)
class Shipped:
    """The weights that a card describes.

    Attributes:
        checkpoint: The weights with their own metrics, which are empty if they were not evaluated.
        dataset: Name of the data set of these metrics.
        notes: What does not match or was not recorded, a sentence each.
    """

    checkpoint: Checkpoint
    dataset: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Facts about a trained model that its card shows.

    Attributes:
        run: The finished run.
        shipped: The weights with their metrics.
        start: File name of the initial weights, or "" for random weights.
        data: Description of each part of the data, by its name.
        classes: Class names. Empty if only the data set defines them.
        tags: Tags for the search on the Hugging Face Hub.
    """

    run: Run
    shipped: Shipped
    start: str
    data: Mapping[str, str]
    classes: Sequence[str]
    tags: Sequence[str]


def find_shipped(run: Run, file: str, sha256: str = "", notes: Sequence[str] = ()) -> Shipped:
    """Find the metrics of the weights that a card describes, by their digest.

    Args:
        run: The training run.
        file: File name of the weights.
        sha256: Digest of the weights. "" takes what the run records for `file`, which was just written.
        notes: Further sentences for the card, such as a config that does not match.
    """
    recorded = next((each for each in run.checkpoints.values() if each.file == file), None)
    if recorded is not None and not recorded.sha256:
        note = f"The results do not record the digest of {file}, so that it is not known whether they are its own."
        notes = notes if not sha256 else (*notes, note)
        return Shipped(recorded, run.dataset, tuple(notes))
    digest = sha256 or (recorded.sha256 if recorded else "")
    found = find_metrics(run, digest) if digest else None
    if found is not None:
        return Shipped(found[1], found[0].dataset, tuple(notes))
    if recorded is not None and digest != recorded.sha256:
        notes = (
            *notes,
            f"{file} is not the file that {run.results_file.name} describes: its SHA-256 differs. No metrics are "
            "stated. Evaluate it with pvt-det eval.",
        )
    return Shipped(Checkpoint(file, digest), run.dataset, tuple(notes))


def write_own_card(facts: Facts, use: str) -> None:
    """Write the model card `README.md` to a run folder. A `README.md` from another source is kept.

    Args:
        facts: Facts about the model.
        use: How to use the model from the run folder, in Markdown.
    """
    path = facts.run.folder / CARD_NAME
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_OWN_START):
        logger.info("%s was not written by this package and is kept. No model card is written.", path)
        return
    write_atomically(path, card_page(facts, Terms(), f"{use}\n\n{_SHARE}"))


def require_other(run: Path, output: Path) -> None:
    """Check that the output folder is neither the run folder nor one that belongs to another command.

    Args:
        run: Run folder.
        output: Folder to write to.

    Raises:
        ConfigError: Both are the same folder, or the output folder contains a run, an evaluation or a prediction.
    """
    if output.resolve() == run.resolve():
        raise ConfigError(f"{output} is the run folder itself. Choose another folder with --output.")
    require_kind(output, SHARED)


def write_shared_card(output: Path, facts: Facts, terms: Terms, use: str) -> None:
    """Write the model card `README.md` of a folder to share, with the SHA-256 of every other file in it.

    Notes about the weights, such as a digest that does not match, are logged as warnings too.

    Args:
        output: The folder, with all its other files. A signature in it is deleted, because it no longer matches.
        facts: Facts about the model.
        terms: Licenses and authors.
        use: How to use the model, in Markdown.
    """
    for note in facts.shipped.notes:
        logger.warning("%s: %s", facts.run.folder, note)
    (output / SIGNATURE_NAME).unlink(missing_ok=True)
    write_atomically(output / CARD_NAME, card_page(facts, terms, use, _files(output)))


def _files(folder: Path) -> str:
    """Return a table of the files in a folder, without the card and hidden files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [(path, path.relative_to(folder)) for path in paths]
    rows = [
        {"file": str(name), "bytes": f"{path.stat().st_size:,}", "SHA-256": file_digest(path)}
        for path, name in names
        if str(name) != CARD_NAME and not any(part.startswith(".") for part in name.parts)
    ]
    return as_markdown(rows)


def card_page(facts: Facts, terms: Terms, use: str, files: str = "") -> str:
    """Return a model card in Markdown, with the metadata header that the Hugging Face Hub reads.

    Args:
        facts: Facts about the model.
        terms: Licenses and authors.
        use: How to use the model, in Markdown.
        files: The files of the folder, in Markdown. "" leaves the section out.
    """
    run, data = facts.run, [_row(part, what) for part, what in facts.data.items()]
    sections = {
        "Usage": use,
        "Results": "\n\n".join([_metrics(facts.shipped), *map(markdown_text, facts.shipped.notes)]),
        "Data": "\n".join([*data, _row("classes", ", ".join(facts.classes) or "those of the data set")]),
        "Training": "\n".join(
            [
                _row("recipe", run.recipe),
                _row("initial weights", facts.start or "random"),
                f"- seed: {'unknown' if run.seed is None else run.seed}",
                f"- parameters: {run.parameters:,}",
            ]
        ),
        "Environment": _environment(run.environment),
        **({"Files": files} if files else {}),
        "License": "\n".join(
            [
                _row("weights", terms.license),
                _row("training data", terms.data_license),
                _row("trained by", terms.authors),
                "- code (pvt_det): Apache-2.0",
            ]
        ),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    trained = f"Trained with pvt_det {markdown_text(run.version or __version__)}."
    return f"{_header(facts, terms)}\n# {markdown_text(run.model)}\n\n{trained}\n\n{body}\n"


def _row(name: str, text: object) -> str:
    return f"- {markdown_text(name)}: {markdown_text(text)}"


def _header(facts: Facts, terms: Terms) -> str:
    run, metrics = facts.run, facts.shipped.checkpoint.metrics
    measured = [
        {"type": f"{task}/{name}", "value": round(value, 2)}
        for task, values in metrics.items()
        for name, value in values.items()
        if task in _TASKS and value is not None and "-" not in name
    ]
    pipeline = _TASKS[next((task for task in reversed(_TASKS) if task in (metrics or run.metrics)), "bbox")][0]
    header: dict[str, Any] = {
        "library_name": _LIBRARY,
        "pipeline_tag": pipeline,
        "tags": [*facts.tags, pipeline],
        "license": "other" if terms.license == NOT_STATED else terms.license,
    }
    if measured:
        dataset = {"name": facts.shipped.dataset, "type": facts.shipped.dataset}
        results = [{"task": {"type": pipeline}, "dataset": dataset, "metrics": measured}]
        header["model-index"] = [{"name": run.model, "results": results}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _metrics(shipped: Shipped) -> str:
    checkpoint, tables = shipped.checkpoint, []
    for task, (_, title) in _TASKS.items():
        whole = {name: value for name, value in checkpoint.metrics.get(task, {}).items() if "-" not in name}
        if whole:
            row = {name: "-" if value is None else f"{value:.1f}" for name, value in whole.items()}
            tables.append(as_markdown([{"percent": title, **row}]))
    if not tables:
        return "Not evaluated."
    digest = f", SHA-256 `{checkpoint.sha256}`" if checkpoint.sha256 else ""
    name = replace(checkpoint, file=Path(checkpoint.file).name)
    head = f"Of the weights {markdown_text(name)}{digest}, on {markdown_text(shipped.dataset)}:"
    return f"{head}\n\n" + "\n\n".join(tables)


def _environment(environment: Mapping[str, Any]) -> str:
    if not environment:
        return "Not recorded."
    lines = []
    for name, value in environment.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(_row(name, shown))
    return "\n".join(lines)
