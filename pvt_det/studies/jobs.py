"""The runs of a study: what each asks for, and the command that does it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pvt_det.classification.config import TrainConfig, classifier_recipe, config_fields, load_train_config
from pvt_det.config.digest import changed_values
from pvt_det.config.given_data import listed_paths
from pvt_det.config.loader import COMMAND_LINE
from pvt_det.data.storage.places import has_shards
from pvt_det.data.storage.references import is_url
from pvt_det.engine.options import option_name
from pvt_det.engine.run_config import build_run_config
from pvt_det.errors import ConfigError, PvtDetError
from pvt_det.run_folder import CLASSIFIER_BEST_NAME
from pvt_det.studies.study import FOLDER, WEIGHTS, Entry, Grid, Pretraining, Study
from pvt_det.utils.paths import ABSENT, file_fault, folder_fault, similar_path

TRAIN, EVAL, TRAIN_CLS = "train", "eval", "train-cls"
_PRETRAIN = "pretrain"
# Resumes a run that was interrupted, and starts one that was not started.
_RESUME = "--resume"


@dataclass(frozen=True)
class Job:
    """A run of a study.

    Attributes:
        command: "train", "eval" or "train-cls".
        name: Name of the run in the study, which is also the path of its folder in the study's.
        folder: The run folder.
        words: Arguments of the command, with the output folder.
        asked: What the study asks for: values by config key or option, without those at their default. A finished run
            is used only if it was started with the same.
        cfg: The config of a detector or segmentor, before the data is read. None for a classifier.
        options: The options of a classifier. None for others.
        data: Paths of the data set by key. None for the data that the config names.
        missing: Data that is not given or does not exist, in sentences. "" if nothing is missing.
        grid: Name of its grid, or "" for a pretraining.
        config: Name of the recipe or path of the file.
        entry: Name of its config in the grid, or of the pretraining.
        dataset: Name of its data set in the study, or "".
        variant: Name of its variant, or "".
        seed: Its seed. None for an evaluation.
        needs: Name of the pretraining whose weights it starts from, or "".
        weights: File of these weights, or None.
        step_seconds: Measured duration of an iteration, or of an epoch of a classifier, that the study's file names, in
            seconds. None if it names none.
    """

    command: str
    name: str
    folder: Path
    words: tuple[str, ...]
    asked: dict[str, Any]
    cfg: CfgNode | None = None
    options: TrainConfig | None = None
    data: Mapping[str, str] | None = None
    missing: str = ""
    grid: str = ""
    config: str = ""
    entry: str = ""
    dataset: str = ""
    variant: str = ""
    seed: int | None = None
    needs: str = ""
    weights: Path | None = None
    step_seconds: float | None = None

    @property
    def shown_command(self) -> str:
        """The command that runs or resumes it alone, quoted for a shell."""
        return shlex.join(["pvt-det", self.command, *self.words])


def study_jobs(study: Study) -> list[Job]:
    """Return the runs of a study in the order in which they are started.

    Pretrainings come first. All runs with the first seed come before those with the second.

    Args:
        study: The study.

    Raises:
        ConfigError: A config does not exist, or a value does not fit its key.
    """
    load = _loader()
    jobs = [_job(study, load, *cell) for grid in study.grids for cell in _cells(grid)]
    order = {seed: number for number, seed in enumerate(dict.fromkeys(job.seed for job in jobs))}
    jobs.sort(key=lambda job: order[job.seed])
    return [_pretraining_job(study, stage) for stage in study.pretrain.values()] + jobs


def _cells(grid: Grid) -> Iterator[tuple[Grid, str, str, Entry, int | None]]:
    for dataset in grid.data or ("",):
        for variant in grid.variants:
            for entry in grid.entries:
                for seed in grid.seeds or (None,):
                    yield grid, dataset, variant, entry, seed


def _loader() -> Any:
    @cache
    def load(config: str, words: tuple[str, ...], training: bool) -> CfgNode:
        return build_run_config(config, {}, words, training=training)

    return load


def _job(study: Study, load: Any, grid: Grid, dataset: str, variant: str, entry: Entry, seed: int | None) -> Job:
    parts = [grid.name, dataset if len(grid.data) > 1 else "", entry.name, variant]
    parts.append("" if seed is None else f"seed{seed}")
    name = "/".join(filter(None, parts))
    folder = study.output.joinpath(*name.split("/"))
    keys = {**grid.overrides, **entry.overrides, **grid.variants[variant]}
    stage = study.pretrain.get(entry.weights or "")
    source = _pretrain_folder(study, stage) / CLASSIFIER_BEST_NAME if stage else None
    if entry.weights is not None:
        keys[WEIGHTS] = entry.weights if source is None else str(source)
    if seed is not None:
        keys["SEED"] = seed
    paths, missing = _paths(study, dataset, grid.evaluate)
    words = [(key, value if isinstance(value, str) else repr(value)) for key, value in keys.items()]
    try:
        cfg = load(entry.config, tuple(chain.from_iterable(words)), not grid.evaluate)
    except PvtDetError as error:
        raise type(error)(f"{study.file}: {name}: {str(error).removeprefix(f'{COMMAND_LINE}: ')}") from error
    if not missing:
        missing = _faults(f"data.{dataset}.", paths) if paths else _faults("", _named_paths(cfg, grid.evaluate))
    given = [word for key, path in paths.items() for word in (option_name(key), path)]
    asked = changed_values(cfg) | {WEIGHTS: f"pretraining {stage.name}" if stage else cfg.MODEL.WEIGHTS}
    resumed = () if grid.evaluate else (_RESUME,)
    return Job(
        command=EVAL if grid.evaluate else TRAIN,
        name=name,
        folder=folder,
        words=("--config-file", entry.config, "--output", str(folder), *resumed, *given, *map("=".join, words)),
        asked=asked,
        cfg=cfg,
        data=paths or None,
        missing=missing,
        grid=grid.name,
        config=entry.config,
        entry=entry.name,
        dataset=dataset,
        variant=variant,
        seed=seed,
        needs=stage.name if stage else "",
        weights=source,
        step_seconds=entry.seconds_per_iteration,
    )


def _paths(study: Study, dataset: str, evaluate: bool) -> tuple[dict[str, str], str]:
    """Return the paths of a data set for a detector, and what is missing."""
    if not dataset:
        return {}, ""
    form = "VAL_JSON,VAL_IMAGES" if evaluate else "TRAIN_JSON,TRAIN_IMAGES,VAL_JSON,VAL_IMAGES"
    paths = {key: path for key, path in (study.data[dataset] or {}).items() if not (evaluate and "train" in key)}
    wanted = 2 if evaluate else 4
    if len(paths) < wanted or FOLDER in paths:
        return {}, f"the paths of the data set {dataset}. Give them with --data {dataset}={form}."
    return paths, ""


def _named_paths(cfg: CfgNode, evaluate: bool) -> dict[str, list[str]]:
    """Return the paths of data that a config names, by key."""
    parts = ("VAL",) if evaluate else ("TRAIN", "VAL")
    keys = [f"{part}_{kind}" for part in parts for kind in ("JSON", "LABELS", "IMAGES")]
    return {f"DATASETS.{key}": listed_paths(cfg.DATASETS[key]) for key in keys}


def _faults(prefix: str, paths: Mapping[str, str | list[str]]) -> str:
    """Say in sentences which local paths cannot be read. Instead of an annotation file, there may be shards."""
    faults = []
    for key, path in [(key, path) for key, value in paths.items() for path in listed_paths(value)]:
        find_fault = file_fault if key.lower().endswith("_json") else folder_fault
        if not is_url(path) and not has_shards(path) and (fault := find_fault(path)):
            faults.append(f"{prefix}{key}: {path} {fault}.{similar_path(path) if fault == ABSENT else ''}")
    return " ".join(faults)


def _pretrain_folder(study: Study, stage: Pretraining) -> Path:
    return study.output / _PRETRAIN / stage.name


def _pretraining_job(study: Study, stage: Pretraining) -> Job:
    folder = _pretrain_folder(study, stage)
    path = (study.data[stage.data] or {}).get(FOLDER, "")
    options = {"model": stage.model, "data": path, "output": str(folder), **stage.options}
    is_path = stage.config.endswith((".yaml", ".yml"))
    file = Path(stage.config) if is_path else classifier_recipe(stage.config or stage.model)
    name = f"{_PRETRAIN}/{stage.name}"
    missing = f"the folder of the data set {stage.data}. Give it with --data {stage.data}=FOLDER."
    if stage.config and file is None:
        raise ConfigError(f"{study.file}: {name}: config {stage.config!r} is neither a file nor a recipe of train-cls.")
    try:
        cfg = load_train_config(file, options)
    except PvtDetError as error:
        raise type(error)(f"{study.file}: {name}: {error}") from error
    words = ["--config-file", str(file)] if stage.config else []
    words += [_flag(option, value) for option, value in options.items()]
    return Job(
        command=TRAIN_CLS,
        name=name,
        folder=folder,
        words=(*words, _RESUME),
        asked=_changed_options(cfg),
        options=cfg,
        data={FOLDER: path} if path else None,
        missing=_faults(f"data.{stage.data}.", {FOLDER: path}) if path else missing,
        entry=stage.name,
        dataset=stage.data,
        seed=cfg.seed,
        step_seconds=stage.seconds_per_epoch,
    )


def _changed_options(cfg: TrainConfig) -> dict[str, Any]:
    """Return the options that change the result and differ from their defaults."""
    fixed = [name for name, option in config_fields().items() if not option.metadata["resumable"]]
    return {name: value for name in fixed if (value := getattr(cfg, name)) != getattr(TrainConfig, name)}


def _flag(option: str, value: Any) -> str:
    if isinstance(value, bool):
        return option_name(option if value else f"no_{option}")
    return f"{option_name(option)}={value}"
