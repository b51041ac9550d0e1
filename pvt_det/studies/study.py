"""Read the file of a study: which configs are trained on which data with which seeds, and what they are compared with.

A file consists of grids. A grid trains, or with `evaluate: true` evaluates, each of its configs on each of its data
sets, with each of its variants and seeds. `pretrain` names classifiers that `train-cls` trains first, whose weights the
configs can start from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pvt_det.config.loader import COMMAND_LINE
from pvt_det.errors import ConfigError
from pvt_det.recipes import study_file
from pvt_det.utils.plain_yaml import read_plain_yaml
from pvt_det.utils.text import closest, did_you_mean, listed

# Paths of a data set in the order of `--data`. An evaluation needs those of the second half only.
_DETECTION = ("train_json", "train_images", "val_json", "val_images")
_SEMANTIC = ("train_labels", "train_images", "val_labels", "val_images")
_PANOPTIC = ("train_json", "train_labels", "train_images", "val_json", "val_labels", "val_images")
FOLDER = "folder"
_DATA_FORMS = (*(form[part:] for form in (_DETECTION, _SEMANTIC, _PANOPTIC) for part in (0, len(form) // 2)), (FOLDER,))
_DATA_KEYS = (*_PANOPTIC, FOLDER)
_FORMS = (
    "Expected exactly train_json, train_images, val_json and val_images, where label maps have train_labels and "
    "val_labels instead of the _json keys or beside them, and an evaluation needs the val_ keys only. A data set for "
    "pretraining has folder only"
)
_STUDY_KEYS = ("description", "output", "data", "pretrain", "seeds", "overrides", "measured_on", "grids")
_PRETRAIN_KEYS = ("model", "config", "data", "options", "seconds_per_epoch")
_GRID_KEYS = ("configs", "data", "seeds", "overrides", "variants", "baseline", "evaluate")
_CONFIG_KEYS = ("config", "weights", "overrides", "seconds_per_iteration")
WEIGHTS = "MODEL.WEIGHTS"
# Config keys and options of `train-cls` that a study sets, and what to use instead.
_OUTPUT = "Use --output, or the key output of the study"
_OWN_KEYS = {"SEED": "Use the key seeds of the study or of a grid, such as `seeds: [0, 1]`", "OUTPUT_DIR": _OUTPUT}
_OWN_OPTIONS = {
    "output": _OUTPUT,
    "data": "Use the key data of the pretraining, or --data",
    "model": "Use the key model of the pretraining",
}
# Names become those of folders.
_NAME = re.compile(r"[^\W_][\w.+=-]*")
_EXPECTED = {
    str: "a string",
    bool: "true or false",
    dict: "a section of keys",
    list: "a list",
    float: "a number above 0",
}
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Pretraining:
    """A classifier that `train-cls` trains, whose weights the runs of a study can start from.

    Attributes:
        name: Name of the pretraining.
        model: Name of the model.
        config: File of options, or "" for the published recipe of the model, if there is one.
        data: Name of the data set.
        options: Values by option of `train-cls`.
        seconds_per_epoch: Measured duration of an epoch on the machine that the study names, or None.
    """

    name: str
    model: str
    config: str
    data: str
    options: dict[str, Any]
    seconds_per_epoch: float | None = None


@dataclass(frozen=True)
class Entry:
    """A config of a grid.

    Attributes:
        name: Name in the table.
        config: Name of a recipe, or path of a config file.
        weights: Name of a pretraining, or any value of MODEL.WEIGHTS. None takes what the config names.
        overrides: Values by config key.
        seconds_per_iteration: Measured duration of an iteration on the machine that the study names, or None.
    """

    name: str
    config: str
    weights: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seconds_per_iteration: float | None = None


@dataclass(frozen=True)
class Grid:
    """Configs that are compared with each other: each is run on each data set, with each variant and each seed.

    Attributes:
        name: Name of the grid.
        entries: The configs.
        data: Names of data sets. Empty for the data that the configs name.
        seeds: The seeds. Empty for evaluations.
        overrides: Values by config key for all runs.
        variants: Values by config key that take precedence over all others, by name of the variant. A grid without
            variants has one, named "".
        baseline: Name of the config that the others are compared with.
        evaluate: Whether the weights are evaluated without training.
    """

    name: str
    entries: tuple[Entry, ...]
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    baseline: str
    evaluate: bool = False


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        file: The file that it was read from.
        description: What the study is about, in a sentence.
        output: Folder of its runs and tables.
        data: Paths by key, such as `train_json`, by name of the data set. None for a data set without paths.
        pretrain: The classifiers to train first, by name.
        grids: The grids.
        measured_on: Machine and date of the durations in the file, or "" if there are none.
    """

    file: Path
    description: str
    output: Path
    data: dict[str, dict[str, str] | None]
    pretrain: dict[str, Pretraining]
    grids: tuple[Grid, ...]
    measured_on: str = ""

    @property
    def name(self) -> str:
        """Name of the study, that of its file."""
        return self.file.stem


def load_study(
    study: str | Path,
    *,
    output: Path | None = None,
    data: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    pretrain: Mapping[str, Any] | None = None,
) -> Study:
    """Read a study and check every key of it.

    Args:
        study: Name of a study of this package, or path of a .yaml file. Configs in it are names of recipes or paths
            relative to the file. Paths of data are relative to the current folder.
        output: Folder of its runs and tables. None takes that of the file, by default `output/studies/NAME`.
        data: Paths of data sets, each as `NAME=PATH,…`, see `parse_data`.
        overrides: Values by config key for all runs, over those of the file.
        pretrain: Values by option of `train-cls` for every pretraining, over those of the file.

    Returns:
        The study.

    Raises:
        ConfigError: The file is missing or is not plain YAML, a key is unknown or has a wrong value, or a name is not
            defined.
    """
    file = study_file(study)
    reader = _Reader(file)
    tree = reader.section(read_plain_yaml(file, ConfigError), "", _STUDY_KEYS)
    sets = {name: _data_set(reader, value, f"data.{name}") for name, value in reader.named(tree, "data", "")}
    for text in data:
        name, paths = parse_data(text)
        if name not in sets:
            raise ConfigError(
                f"--data {text}: {file} has no data set {name!r}.{did_you_mean(name, sets)} "
                f"{f'It has {listed(list(sets))}.' if sets else 'Its configs name their own data.'}"
            )
        sets[name] = paths
    _refuse(overrides or {}, _OWN_KEYS, f"{COMMAND_LINE}: ")
    _refuse(pretrain or {}, _OWN_OPTIONS, "--pretrain ")
    stages = {
        name: _pretraining(reader, name, value, sets, pretrain or {})
        for name, value in reader.named(tree, "pretrain", "")
    }
    if pretrain and not stages:
        raise ConfigError(f"--pretrain {listed(list(pretrain))}: {file} has no pretraining. Leave out --pretrain.")
    shared = {
        "seeds": reader.seeds(tree, ""),
        "overrides": reader.overrides(tree, ""),
        "given": dict(overrides or {}),
    }
    grids = tuple(_grid(reader, name, value, sets, shared) for name, value in reader.named(tree, "grids", ""))
    if not grids:
        raise reader.error("grids", "expected at least one grid: a name, and its configs")
    _require_use(reader, stages, grids)
    found = Study(
        file=file,
        description=reader.get(tree, "description", str, "", ""),
        output=output or Path(reader.get(tree, "output", str, f"output/studies/{file.stem}", "")),
        data=sets,
        pretrain=stages,
        grids=grids,
        measured_on=reader.get(tree, "measured_on", str, "", ""),
    )
    timed = any(entry.seconds_per_iteration for grid in grids for entry in grid.entries)
    if (timed or any(stage.seconds_per_epoch for stage in stages.values())) and not found.measured_on:
        raise reader.error("measured_on", "the file has durations. Name the machine and the date of their measurement")
    return found


def parse_data(text: str) -> tuple[str, dict[str, str]]:
    """Parse the value of `--data`.

    Args:
        text: `NAME=FOLDER` for pretraining, `NAME=ANNOTATIONS,IMAGES` for an evaluation, or
            `NAME=ANNOTATIONS,IMAGES,ANNOTATIONS,IMAGES` for training and validation. Annotations that do not end in
            .json are folders of label maps.

    Returns:
        The name of the data set, and its paths by key.

    Raises:
        ConfigError: The text has another form.
    """
    name, separator, rest = text.partition("=")
    paths = rest.split(",")
    if not (separator and name and all(paths)) or len(paths) not in (1, 2, 4):
        raise ConfigError(
            f"--data {text}: expected NAME=FOLDER for pretraining, NAME=VAL_JSON,VAL_IMAGES for an evaluation, or "
            "NAME=TRAIN_JSON,TRAIN_IMAGES,VAL_JSON,VAL_IMAGES. Write paths that contain commas into the file."
        )
    if len(paths) == 1:
        return name, {FOLDER: rest}
    keys = _DETECTION if paths[0].lower().endswith(".json") else _SEMANTIC
    return name, dict(zip(keys[-len(paths) :], paths, strict=True))


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested sections by their dotted keys.

    Args:
        tree: Sections and values, such as `{"SOLVER": {"MAX_ITER": 4}}` or `{"SOLVER.MAX_ITER": 4}`.
        prefix: Text before each key.
    """
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _refuse(values: Mapping[str, Any], own: Mapping[str, str], place: str) -> None:
    """Refuse keys that would have no effect. `own` says for each what to use instead."""
    for key, advice in own.items():
        if key in values:
            raise ConfigError(f"{place}{key}: it has no effect here. {advice}.")


class _Reader:
    """Reads the values of a file, with errors that name it and the key."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.file}: {key}: {problem}.")

    def section(self, tree: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
        if not isinstance(tree, dict):
            raise self.error(where or "study", f"expected a section with keys such as {', '.join(known[:3])}")
        for key in tree:
            if key not in known:
                hint = did_you_mean(key, known) or f" Expected one of {', '.join(known)}."
                raise ConfigError(f"{self.file}: unknown key {self._join(where, key)}.{hint}")
        return tree

    def get(self, tree: Mapping[str, Any], key: str, kind: type[Kind], default: Any, where: str) -> Any:
        value = tree.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        if not isinstance(value, kind) or kind is float:
            raise self.error(self._join(where, key), f"{value!r}: expected {_EXPECTED[kind]}")
        return value

    def named(self, tree: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
        """Return the items of a section whose keys are names chosen by the user."""
        items = list(self.get(tree, key, dict, {}, where).items())
        for name, _ in items:
            self.check_name(name, self._join(where, key))
        return items

    def check_name(self, name: str, where: str) -> None:
        if not _NAME.fullmatch(name):
            raise self.error(where, f"{name!r} becomes a folder. Expected letters, digits and . _ + = - without spaces")

    def seeds(self, tree: Mapping[str, Any], where: str) -> tuple[int, ...] | None:
        if tree.get("seeds") is None:
            return None
        seeds = self.get(tree, "seeds", list, [], where)
        valid = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
        if not seeds or not valid or len(set(seeds)) < len(seeds):
            raise self.error(self._join(where, "seeds"), f"{seeds}: expected different integers, 0 or more")
        return tuple(seeds)

    def overrides(self, tree: Mapping[str, Any], where: str, key: str = "overrides") -> dict[str, Any]:
        found = dict(flat(self.get(tree, key, dict, {}, where)))
        _refuse(found, _OWN_KEYS, f"{self.file}: {self._join(where, key)}.")
        return found

    def one_of(self, name: str, known: Mapping[str, Any], where: str, what: str) -> str:
        if name not in known:
            defined = f" Expected one of {', '.join(known)}." if known else f" The file defines no {what}."
            raise ConfigError(f"{self.file}: {where}: {name!r} is not a {what}.{did_you_mean(name, known) or defined}")
        return name

    def config(self, name: str) -> str:
        """Return a config by the name of its recipe or by its path, which is relative to the file."""
        is_path = name.endswith((".yaml", ".yml"))
        return os.path.normpath(self.file.parent / name) if is_path else name

    @staticmethod
    def _join(where: str, key: str) -> str:
        return f"{where}.{key}" if where else key


def _data_set(reader: _Reader, value: Any, where: str) -> dict[str, str] | None:
    if value is None:
        return None
    paths = reader.section(value, where, _DATA_KEYS)
    found = {key: path for key in paths if (path := reader.get(paths, key, str, "", where))}
    if found and set(found) not in map(set, _DATA_FORMS):
        raise reader.error(where, f"it has {', '.join(found)}. {_FORMS}")
    return found or None


def _pretraining(
    reader: _Reader, name: str, value: Any, sets: Mapping[str, Any], given: Mapping[str, Any]
) -> Pretraining:
    where = f"pretrain.{name}"
    tree = reader.section(value, where, _PRETRAIN_KEYS)
    if not tree.get("model") or not tree.get("data"):
        raise reader.error(where, "expected the keys model and data")
    options = reader.get(tree, "options", dict, {}, where)
    _refuse(options, _OWN_OPTIONS, f"{reader.file}: {where}.options.")
    return Pretraining(
        name=name,
        model=reader.get(tree, "model", str, "", where),
        config=reader.config(reader.get(tree, "config", str, "", where)),
        data=reader.one_of(reader.get(tree, "data", str, "", where), sets, f"{where}.data", "data set"),
        options={**options, **given},
        seconds_per_epoch=reader.get(tree, "seconds_per_epoch", float, None, where),
    )


def _require_use(reader: _Reader, stages: Mapping[str, Any], grids: Sequence[Grid]) -> None:
    """Refuse a pretraining that no config starts from. A misspelled name in `weights` is taken for a file."""
    given = {entry.weights: f"grids.{grid.name}.configs.{entry.name}" for grid in grids for entry in grid.entries}
    for name in stages:
        if name in given:
            continue
        hint = f"Give a config `weights: {name}`, or remove the pretraining."
        for weights in closest(name, (weights for weights in given if weights and weights not in stages)):
            hint = f"{given[weights]} has `weights: {weights}`. Did you mean {name}?"
        raise ConfigError(f"{reader.file}: pretrain.{name}: no config starts from it. {hint}")


def _grid(reader: _Reader, name: str, value: Any, sets: Mapping[str, Any], shared: Mapping[str, Any]) -> Grid:
    where = f"grids.{name}"
    tree = reader.section(value, where, _GRID_KEYS)
    entries = tuple(_entries(reader, tree, where))
    names = {entry.name: entry for entry in entries}
    if not entries:
        raise reader.error(f"{where}.configs", "expected at least one config")
    if len(names) < len(entries):
        raise reader.error(f"{where}.configs", "two configs have the same name. Name them: `NAME: {config: …}`")
    evaluate = reader.get(tree, "evaluate", bool, False, where)
    seeds = reader.seeds(tree, where)
    if evaluate and seeds:
        raise reader.error(f"{where}.seeds", "an evaluation has no seeds. Leave them out")
    data = reader.get(tree, "data", list, [], where)
    for each in data:
        reader.one_of(str(each), sets, f"{where}.data", "data set")
    baseline = reader.get(tree, "baseline", str, entries[0].name, where)
    own = reader.overrides(tree, where)
    variants = {
        variant: reader.overrides(tree["variants"], f"{where}.variants", variant)
        for variant, _ in reader.named(tree, "variants", where)
    }
    places = {f"{where}.variants.{variant}": keys for variant, keys in variants.items()}
    places |= {f"{where}.overrides": own, "overrides": shared["overrides"]}
    for entry in entries:
        if entry.weights is not None:
            place = f"{where}.configs.{entry.name}"
            advice = f"{place} has the key weights. Remove one of them. To compare weights, add a config for each"
            _refuse(shared["given"], {WEIGHTS: advice}, f"{COMMAND_LINE}: ")
            for section, keys in (places | {f"{place}.overrides": entry.overrides}).items():
                _refuse(keys, {WEIGHTS: advice}, f"{reader.file}: {section}.")
    return Grid(
        name=name,
        entries=entries,
        data=tuple(data),
        seeds=() if evaluate else seeds or shared["seeds"] or (0,),
        overrides={**shared["overrides"], **own},
        variants={variant: {**keys, **shared["given"]} for variant, keys in (variants or {"": {}}).items()},
        baseline=reader.one_of(baseline, names, f"{where}.baseline", "config of the grid"),
        evaluate=evaluate,
    )


def _entries(reader: _Reader, tree: Mapping[str, Any], where: str) -> Iterator[Entry]:
    configs = tree.get("configs")
    if configs is not None and not isinstance(configs, list | dict):
        raise reader.error(f"{where}.configs", f"{configs!r}: expected a list or a section of keys")
    if isinstance(configs, list):
        for config in configs:
            if not isinstance(config, str):
                raise reader.error(f"{where}.configs", f"{config!r}: expected the name of a recipe or a file")
            name = Path(config).stem
            reader.check_name(name, f"{where}.configs")
            yield Entry(name, reader.config(config))
        return
    for name, value in reader.named(tree, "configs", where):
        place = f"{where}.configs.{name}"
        if isinstance(value, str):
            yield Entry(name, reader.config(value))
            continue
        keys = reader.section(value, place, _CONFIG_KEYS)
        config = reader.get(keys, "config", str, "", place)
        if not config:
            raise reader.error(place, "expected the key config, the name of a recipe or a file")
        yield Entry(
            name=name,
            config=reader.config(config),
            weights=reader.get(keys, "weights", str, None, place),
            overrides=reader.overrides(keys, place),
            seconds_per_iteration=reader.get(keys, "seconds_per_iteration", float, None, place),
        )
