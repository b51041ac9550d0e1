"""A page about a trained model, beside its checkpoints; a run as a folder to share, with that page."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Protocol

from detectron2.config import CfgNode

from pvt_det import __version__
from pvt_det.config import load_config
from pvt_det.config.architecture import is_segmentor
from pvt_det.data.coco.annotations import read_json
from pvt_det.reports.card_page import SHARED_NAME, Facts, Terms, card_page, require_other, write_own_card
from pvt_det.run_folder import CARD_NAME, CONFIG_NAME, Run, config_file, load_run, run_weights
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder
from pvt_det.weights import read_checkpoint, save_safetensors

# Where on this machine the data lie is nobody else's business.
_PRIVATE = ("TRAIN_JSON", "TRAIN_IMAGES", "TRAIN_LABELS", "VAL_JSON", "VAL_IMAGES", "VAL_LABELS", "VAL_PANOPTIC_JSON")


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a repository."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Put a folder's files into it."""


def write_folder(run: Path, output: Path, terms: Terms, weights: str = "") -> None:
    """Write `README.md`, `model.safetensors` and `config.yaml`.

    Args:
        run: a run's output folder.
        output: where to; made where missing.
        terms: licences and authors.
        weights: "" takes the run's best.

    Raises:
        CheckpointError: the weights are missing or damaged.
        ConfigError: the folder is the run's own, or cannot be made or written in.
        DataError: the run was not finished and evaluated.
    """
    require_other(run, output)
    path = config_file(run)
    cfg, about = load_config(path), load_run(run)
    make_folder(output)
    card = card_page(_facts(about, cfg), terms, _use(cfg, CONFIG_NAME, SHARED_NAME))
    save_safetensors(output / SHARED_NAME, read_checkpoint(run_weights(path, weights)), {"model": about.model})
    write_atomically(output / CONFIG_NAME, _portable(cfg).dump())
    write_atomically(output / CARD_NAME, card)


def write_card(run: Path, cfg: CfgNode) -> None:
    """Write `README.md` beside a run's checkpoints; one that somebody else wrote stays as it is.

    Args:
        run: a run's output folder, with its `results.json`.
        cfg: its config.
    """
    write_own_card(_facts(load_run(run), cfg), f"In this folder:\n\n{_use(cfg, '.', '')}")


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


def _facts(run: Run, cfg: CfgNode) -> Facts:
    return Facts(
        run=run,
        start=Path(cfg.MODEL.WEIGHTS).name,
        data={part: _data(cfg, part) for part in ("TRAIN", "VAL")},
        classes=cfg.DATASETS.LABEL_NAMES if is_segmentor(cfg) else cfg.DATASETS.CLASS_NAMES,
        tags=("pvt", "detectron2"),
    )


def _use(cfg: CfgNode, config: str, weights: str) -> str:
    given = f"{shlex.quote(config)}{f' --weights {shlex.quote(weights)}' if weights else ''}"
    name, found = ("Segmentor", "labels") if is_segmentor(cfg) else ("Predictor", "found")
    call = f"{name}({', '.join(json.dumps(word) for word in (config, weights) if word)})"
    return (
        f"```\npvt-det predict photo.jpg --config-file {given}\n```\n\n"
        f'```python\nfrom pvt_det import {name}\n\n{found} = {call}("photo.jpg")\n```'
    )


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


def _portable(cfg: CfgNode) -> CfgNode:
    """The config without paths of this machine."""
    cfg = cfg.clone()
    cfg.defrost()
    for key in _PRIVATE:
        cfg.DATASETS[key] = ""
    cfg.MODEL.WEIGHTS = ""
    cfg.OUTPUT_DIR = "./output"
    return cfg
