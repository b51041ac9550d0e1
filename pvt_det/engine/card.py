"""A page about a trained model, beside its checkpoints; a run as a folder to share, with that page."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from detectron2.config import CfgNode

from pvt_det import __version__
from pvt_det.config import load_config
from pvt_det.data.annotations import read_json
from pvt_det.engine.checkpoint import write_atomically
from pvt_det.engine.results import CONFIG_NAME
from pvt_det.engine.trained_model import config_file, is_segmentor, run_weights
from pvt_det.errors import ConfigError
from pvt_det.evaluation.compare import Run, load_run
from pvt_det.evaluation.tables import as_markdown
from pvt_det.weights import read_checkpoint, save_safetensors

CARD_NAME, WEIGHTS_NAME = "README.md", "model.safetensors"
_LIBRARY = "pvt_det"
_OWN_START = f"---\nlibrary_name: {_LIBRARY}\n"
NOT_STATED = "not stated"
_PIPELINES = {
    "bbox": "object-detection",
    "segm": "image-segmentation",
    "sem_seg": "image-segmentation",
    "panoptic_seg": "image-segmentation",
}
_TITLES = {"bbox": "boxes", "segm": "masks", "sem_seg": "segmentation", "panoptic_seg": "panoptic segmentation"}
_log = logging.getLogger(__name__)
# Where on this machine the data lie is nobody else's business.
_PRIVATE = ("TRAIN_JSON", "TRAIN_IMAGES", "TRAIN_LABELS", "VAL_JSON", "VAL_IMAGES", "VAL_LABELS", "VAL_PANOPTIC_JSON")


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a repository."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Put a folder's files into it."""


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


def write_folder(run: Path, output: Path, terms: Terms, weights: str = "") -> None:
    """Write `README.md`, `model.safetensors` and `config.yaml`.

    Args:
        run: a run's output folder.
        output: where to; made where missing.
        terms: licences and authors.
        weights: "" takes the run's best.

    Raises:
        CheckpointError: the weights are missing or damaged.
        ConfigError: the folder is the run's own.
        DataError: the run was not finished and evaluated.
    """
    if output.resolve() == run.resolve():
        raise ConfigError(f"{output} is the run's own folder: choose another with --output.")
    path = config_file(run)
    cfg, about = load_config(path), load_run(run)
    output.mkdir(parents=True, exist_ok=True)
    card = model_card(about, cfg, terms, _use(cfg, CONFIG_NAME, WEIGHTS_NAME))
    save_safetensors(output / WEIGHTS_NAME, read_checkpoint(run_weights(path, weights)), {"model": about.model})
    write_atomically(output / CONFIG_NAME, _portable(cfg).dump())
    write_atomically(output / CARD_NAME, card)


def write_card(run: Path, cfg: CfgNode) -> None:
    """Write `README.md` beside a run's checkpoints; one that somebody else wrote stays as it is.

    Args:
        run: a run's output folder, with its `results.json`.
        cfg: its config.
    """
    path = run / CARD_NAME
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_OWN_START):
        _log.info("%s is not of this package and stays: no page about the model is written.", path)
        return
    share = "To share it, with a licence: `pvt-det card . --output share --license SPDX`"
    use = f"In this folder:\n\n{_use(cfg, '.', '')}\n\n{share}"
    write_atomically(path, model_card(load_run(run), cfg, Terms(), use))


def push(folder: Path, repository: str, hub: Hub, *, private: bool = False) -> None:
    """Put such a folder on the Hugging Face hub.

    Args:
        folder: as `write_folder` made it.
        repository: its name there, "owner/name".
        hub: the hub's interface.
        private: whether only the owner sees it; of a repository that is there already, nothing changes.
    """
    hub.create_repo(repository, private=private, exist_ok=True)
    hub.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=f"Upload by pvt_det {__version__}")


def model_card(run: Run, cfg: CfgNode, terms: Terms, use: str) -> str:
    """A page in Markdown about a trained model, with the header that the Hugging Face hub reads.

    Args:
        run: as it was finished.
        cfg: its config.
        terms: licences and authors.
        use: how to use it, in Markdown.
    """
    data = [f"- {part}: {_data(cfg, part)}" for part in ("TRAIN", "VAL")]
    classes = cfg.DATASETS.LABEL_NAMES if is_segmentor(cfg) else cfg.DATASETS.CLASS_NAMES
    sections = {
        "Use": use,
        "Results": _metrics(run),
        "Data": "\n".join([*data, f"- classes: {', '.join(classes) or 'those of the data set'}"]),
        "Training": "\n".join(
            [
                f"- recipe: {run.recipe}",
                f"- started from: {Path(cfg.MODEL.WEIGHTS).name or 'random weights'}",
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
    return f"{_header(run, terms)}\n# {run.model}\n\nTrained with pvt_det {__version__}.\n\n{body}\n"


def _header(run: Run, terms: Terms) -> str:
    measured = [
        {"type": f"{task}/{name}", "value": round(value, 2)}
        for task, values in run.metrics.items()
        for name, value in values.items()
        if task in _PIPELINES and value is not None and "-" not in name
    ]
    task = next((kind for kind in reversed(_PIPELINES) if kind in run.metrics), "bbox")
    pipeline = _PIPELINES[task]
    header: dict[str, Any] = {
        "library_name": _LIBRARY,
        "pipeline_tag": pipeline,
        "tags": ["pvt", "detectron2", pipeline],
        "license": "other" if terms.licence == NOT_STATED else terms.licence,
    }
    if measured:
        dataset = {"name": run.dataset, "type": run.dataset}
        results = [{"task": {"type": pipeline}, "dataset": dataset, "metrics": measured}]
        header["model-index"] = [{"name": run.model, "results": results}]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"


def _use(cfg: CfgNode, config: str, weights: str) -> str:
    given = f"{shlex.quote(config)}{f' --weights {shlex.quote(weights)}' if weights else ''}"
    name, found = ("Segmentor", "labels") if is_segmentor(cfg) else ("Predictor", "found")
    call = f"{name}({', '.join(json.dumps(word) for word in (config, weights) if word)})"
    return (
        f"```\npvt-det predict photo.jpg --config-file {given}\n```\n\n"
        f'```python\nfrom pvt_det import {name}\n\n{found} = {call}("photo.jpg")\n```'
    )


def _metrics(run: Run) -> str:
    tables = []
    for task, title in _TITLES.items():
        whole = {name: value for name, value in run.metrics.get(task, {}).items() if "-" not in name}
        if whole:
            row = {name: "-" if value is None else f"{value:.1f}" for name, value in whole.items()}
            tables.append(as_markdown([{"percent": title, **row}]))
    if not tables:
        return "Not evaluated."
    return f"On {run.dataset}:\n\n" + "\n\n".join(tables)


def _data(cfg: CfgNode, part: str) -> str:
    """What a part of the data was: its file's name and how much is in it, or the data set's name."""
    file = Path(cfg.DATASETS[f"{part}_JSON"])
    if not cfg.DATASETS[f"{part}_JSON"]:
        names = cfg.DATASETS.TRAIN if part == "TRAIN" else cfg.DATASETS.TEST
        return ", ".join(names) or "not told"
    if not file.is_file():
        return file.name
    content = read_json(file)
    return f"{file.name}, {len(content['images']):,} images, {len(content['annotations']):,} objects"


def _environment(environment: Mapping[str, Any]) -> str:
    if not environment:
        return "Not written down."
    lines = []
    for name, value in environment.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {name}: {shown}")
    return "\n".join(lines)


def _portable(cfg: CfgNode) -> CfgNode:
    """The config without paths of this machine."""
    cfg = cfg.clone()
    cfg.defrost()
    for key in _PRIVATE:
        cfg.DATASETS[key] = ""
    cfg.MODEL.WEIGHTS = ""
    cfg.OUTPUT_DIR = "./output"
    return cfg
