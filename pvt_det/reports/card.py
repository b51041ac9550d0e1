"""Write the model card of a run, and create a folder to share with the card, the weights and the config."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Protocol

from detectron2.config import CfgNode

from pvt_det import __version__
from pvt_det.config import load_config
from pvt_det.config.architecture import is_segmentor
from pvt_det.config.given_data import Part, given_data
from pvt_det.data.coco.annotations import read_json
from pvt_det.inference.base import predictor_name
from pvt_det.reports.card_page import (
    Facts,
    Shipped,
    Terms,
    find_shipped,
    require_other,
    write_own_card,
    write_shared_card,
)
from pvt_det.reports.compare import config_mismatch
from pvt_det.results import BEST, FINAL, Run, load_run
from pvt_det.run_folder import CONFIG_NAME, SHARED_NAME, config_file, identified_weights
from pvt_det.utils.digest import file_digest
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import make_folder
from pvt_det.utils.text import counted
from pvt_det.weights import read_checkpoint, save_safetensors
from pvt_det.weights.source import locate

# Paths of this machine, which are not shared.
_PRIVATE = ("TRAIN_JSON", "TRAIN_IMAGES", "TRAIN_LABELS", "VAL_JSON", "VAL_IMAGES", "VAL_LABELS", "VAL_PANOPTIC_JSON")


class Hub(Protocol):
    """The part of the `huggingface_hub.HfApi` interface that `push` uses."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Create a repository.

        Args:
            repo_id: Name of the repository, "owner/name".
            private: Whether only the owner can see a new repository.
            exist_ok: Whether the repository may already exist.
        """

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Upload the files of a folder to a repository.

        Args:
            repo_id: Name of the repository, "owner/name".
            folder_path: Folder to upload.
            commit_message: Message of the commit.
        """


def write_folder(run: Path, output: Path, terms: Terms, weights: str = "") -> None:
    """Write `README.md`, `model.safetensors` and `config.yaml` to a folder to share.

    Args:
        run: Run folder of a detector or segmentor.
        output: Folder to write to. It is created if it does not exist.
        terms: Licenses and authors for the model card.
        weights: Weights file. "" uses the best checkpoint of the run.

    Raises:
        CheckpointError: The weights are missing or damaged.
        ConfigError: `output` is the run folder, or cannot be created or written to.
        DataError: The run was not evaluated.
    """
    require_other(run, output)
    path = config_file(run)
    cfg, about = load_config(path, training=False), load_run(run)
    source, sha256 = identified_weights(path, weights)
    shipped = find_shipped(about, Path(source).name, sha256 or file_digest(locate(source)), config_mismatch(about))
    make_folder(output)
    save_safetensors(output / SHARED_NAME, read_checkpoint(source), {"model": about.model})
    write_atomically(output / CONFIG_NAME, _portable(cfg).dump())
    write_shared_card(output, _facts(about, cfg, shipped), terms, _usage(cfg, CONFIG_NAME, SHARED_NAME))


def write_card(run: Path, cfg: CfgNode) -> None:
    """Write the model card `README.md` to a run folder. A `README.md` from another source is kept.

    Args:
        run: Run folder with a `results.json`.
        cfg: Config of the run.
    """
    about = load_run(run)
    # The same choice as of `run_weights`, which the commands in the card use.
    checkpoint = about.checkpoints[BEST if BEST in about.checkpoints else FINAL]
    shipped = find_shipped(about, checkpoint.file)
    write_own_card(_facts(about, cfg, shipped), f"In this folder:\n\n{_usage(cfg, '.', '')}")


def push(folder: Path, repository: str, hub: Hub, *, private: bool = False) -> None:
    """Upload a folder to the Hugging Face Hub.

    Args:
        folder: Folder written by `write_folder`.
        repository: Name of the repository on the hub, "owner/name". It is created if it does not exist.
        hub: Client of the hub.
        private: Whether only the owner can see a new repository. An existing repository keeps its visibility.
    """
    hub.create_repo(repository, private=private, exist_ok=True)
    hub.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=f"Upload by pvt_det {__version__}")


def _facts(run: Run, cfg: CfgNode, shipped: Shipped) -> Facts:
    return Facts(
        run=run,
        shipped=shipped,
        start=Path(cfg.MODEL.WEIGHTS).name,
        data={"TRAIN": _data(run, cfg, "TRAIN"), "VAL": _data(run, cfg, "VAL")},
        classes=cfg.DATASETS.LABEL_NAMES if is_segmentor(cfg) else cfg.DATASETS.CLASS_NAMES,
        tags=("pvt", "detectron2"),
    )


def _usage(cfg: CfgNode, config: str, weights: str) -> str:
    options = f"{shlex.quote(config)}{f' --weights {shlex.quote(weights)}' if weights else ''}"
    name = predictor_name(cfg)
    result = {"Predictor": "detections", "Segmentor": "labels", "PanopticPredictor": "segments"}[name]
    call = f"{name}({', '.join(json.dumps(word) for word in (config, weights) if word)})"
    return (
        f"```\npvt-det predict photo.jpg --config-file {options}\n```\n\n"
        f'```python\nfrom pvt_det import {name}\n\n{result} = {call}("photo.jpg")\n```'
    )


def _data(run: Run, cfg: CfgNode, part: Part) -> str:
    """Describe the training or validation data: file name and counts, or the name of the data set."""
    role = "train" if part == "TRAIN" else "test"
    recorded = [each for each in run.data if each.role == role and each.objects is not None]
    if recorded:
        return "; ".join(
            f"{Path(r.path).name}, {r.images:,} images, {r.objects:,} objects{_left_out(r.left_out)}"
            f"{_share(cfg, r.dataset) if role == 'train' else ''}"
            for r in recorded
        )
    files = [Path(data.json_file) for data in given_data(cfg, part) if data.json_file]
    if not files:
        names = cfg.DATASETS.TRAIN if part == "TRAIN" else cfg.DATASETS.TEST
        return ", ".join(names) or "not stated"
    return "; ".join(map(_count, files))


def _count(file: Path) -> str:
    """Describe an annotation file by its name and, if it exists, what it contains."""
    if not file.is_file():
        return file.name
    content = read_json(file)
    return f"{file.name}, {counted(len(content['images']), 'image')}, {counted(len(content['annotations']), 'object')}"


def _share(cfg: CfgNode, name: str) -> str:
    """Describe the share of a data set in the training samples, or return "" without weights."""
    weights = dict(zip(cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS, strict=False))
    return f", {weights[name] / sum(weights.values()):.1%} of the samples" if name in weights else ""


def _left_out(counts: dict[str, int]) -> str:
    return f" (left out as broken: {', '.join(f'{n:,} x {kind}' for kind, n in counts.items())})" if counts else ""


def _portable(cfg: CfgNode) -> CfgNode:
    """Return a copy of the config without paths of this machine."""
    cfg = cfg.clone()
    cfg.defrost()
    for key in _PRIVATE:
        cfg.DATASETS[key] = ""
    cfg.MODEL.WEIGHTS = ""
    cfg.OUTPUT_DIR = "./output"
    return cfg
