"""Load YAML configs without executing code from them.

Detectron2's own loader falls back to a YAML loader that builds Python objects, and it executes `.py` files. This one
accepts plain YAML only, rejects duplicate keys, and names the file and the key in every error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from pvt_det.config.keys import get_config
from pvt_det.config.validate import validate_config
from pvt_det.config.values import coerce
from pvt_det.errors import ConfigError
from pvt_det.recipes import is_recipe_name, recipe_file
from pvt_det.utils.cli import split_assignments
from pvt_det.utils.paths import file_fault, folder_fault
from pvt_det.utils.plain_yaml import parse_plain_yaml, read_plain_yaml
from pvt_det.utils.text import closest, did_you_mean, listed

BASE_KEY = "_BASE_"
COMMAND_LINE = "command line"


def load_config(path: str | Path, overrides: Sequence[Any] = (), *, training: bool = True) -> CfgNode:
    """Load a config file on top of the defaults, apply overrides, and validate the result.

    A file can inherit from others with `_BASE_: file.yaml` or a list of files, with paths relative to itself. Names
    without `.yaml`, such as `_BASE_: retinanet_pvt_small`, are recipes of this package. Later entries override earlier
    ones, and the file itself overrides all of them. In a file, an `OUTPUT_DIR` of "." is the folder of that file, so
    that a run folder can be moved with its config. All other paths are relative to the current folder.

    Args:
        path: A `.yaml` or `.yml` file, or the name of a recipe such as "retinanet_pvt_small".
        overrides: Keys and values, alternating, as on the command line:
            `["SOLVER.MAX_ITER", "100", "MODEL.PVT.VARIANT", "pvt_tiny"]`. `"SOLVER.MAX_ITER=100"` works as well.
        training: Whether the config is for training. If it is not, the values of the SOLVER section are not checked.

    Returns:
        A config that is not frozen.

    Raises:
        ConfigError: A file is missing, is not plain YAML or inherits from itself; a key is unknown or given twice; a
            value has the wrong type or is out of range.
    """
    cfg, defaults = get_config(), get_config()
    path = recipe_file(path) if is_recipe_name(path) else Path(path)
    _merge_file(cfg, defaults, path, chain=())
    _merge_overrides(cfg, defaults, overrides)
    validate_config(cfg, where=str(path), training=training)
    return cfg


def parse_config(text: str, where: str, *, training: bool = True) -> CfgNode:
    """Load a config from a string instead of a file. It inherits from no other.

    Args:
        text: Plain YAML.
        where: Where it is from, for messages.
        training: Whether the config is for training. If it is not, the values of the SOLVER section are not checked.

    Returns:
        A config that is not frozen.

    Raises:
        ConfigError: The text is not plain YAML, a key is unknown or given twice, or a value has the wrong type or is
            out of range.
    """
    cfg, defaults = get_config(), get_config()
    tree = _require_sections(parse_plain_yaml(text, where, ConfigError), where)
    _merge_tree(cfg, defaults, tree, prefix="", where=where)
    validate_config(cfg, where=where, training=training)
    return cfg


def copy_config(config: CfgNode, overrides: Sequence[Any] = (), *, training: bool = True) -> CfgNode:
    """Copy a config, apply overrides to the copy, and validate it.

    Args:
        config: A config with the keys of this package, frozen or not. It is not changed.
        overrides: Keys and values, alternating, as in `load_config`.
        training: Whether the config is for training. If it is not, the values of the SOLVER section are not checked.

    Returns:
        A config that is not frozen.

    Raises:
        ConfigError: The config lacks keys of this package, a key is unknown, or a value has the wrong type or is out of
            range.
    """
    if missing := set(_keys(get_config())) - set(_keys(config)):
        raise ConfigError(
            f"config: no key {listed(sorted(missing), 3)}. Expected a config from `pvt_det.get_config()` or "
            "`pvt_det.model_zoo.get_config(name)`, or one that `pvt_det.add_pvt_config(cfg)` was called for."
        )
    cfg = config.clone()
    cfg.defrost()
    _merge_overrides(cfg, config, overrides)
    validate_config(cfg, where="config", training=training)
    return cfg


def _merge_file(cfg: CfgNode, defaults: CfgNode, path: Path, chain: tuple[Path, ...]) -> None:
    resolved = Path(os.path.realpath(path))  # unlike Path.resolve, does not raise on circular links
    if resolved in chain:
        cycle = " → ".join(str(p) for p in (*chain[chain.index(resolved) :], resolved))
        raise ConfigError(f"{BASE_KEY} is circular: {cycle}. Remove one of these references.")
    tree = _read_yaml(path, referrer=chain[-1] if chain else None)
    for base in _bases(tree.pop(BASE_KEY, []), path):
        inherited = recipe_file(base) if is_recipe_name(base, path.parent) else path.parent / base
        _merge_file(cfg, defaults, inherited, (*chain, resolved))
    _merge_tree(cfg, defaults, tree, prefix="", where=str(path))
    if tree.get("OUTPUT_DIR") == ".":
        cfg.OUTPUT_DIR = str(path.parent)


def _bases(value: Any, path: Path) -> list[str]:
    bases = [value] if isinstance(value, str) else value
    if not isinstance(bases, list) or not all(isinstance(b, str) and b and "\0" not in b for b in bases):
        raise ConfigError(f"{path}: {BASE_KEY} = {value!r}: expected a file name or a list of file names.")
    return bases


def _merge_tree(cfg: CfgNode, defaults: CfgNode, tree: Mapping[str, Any], prefix: str, where: str) -> None:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in defaults:
            raise _unknown_key(key, where)
        if isinstance(defaults[name], CfgNode):
            if not isinstance(value, dict):
                examples = ", ".join(list(defaults[name])[:3])
                raise ConfigError(f"{where}: {key} = {value!r}: expected a section with keys such as {examples}.")
            _merge_tree(cfg[name], defaults[name], value, f"{key}.", where)
        else:
            cfg[name] = coerce(value, defaults[name], key, where)


def _merge_overrides(cfg: CfgNode, defaults: CfgNode, overrides: Sequence[Any]) -> None:
    words = split_assignments(overrides)
    if len(words) % 2:
        raise ConfigError(
            f"{COMMAND_LINE}: {words[-1]} has no value. Expected KEY VALUE or KEY=VALUE for every key. Found "
            f"{listed([str(word) for word in overrides], 10)}."
        )
    for key, value in zip(words[::2], words[1::2], strict=True):
        tree = value
        for name in reversed(str(key).split(".")):
            tree = {name: tree}
        _merge_tree(cfg, defaults, tree, prefix="", where=COMMAND_LINE)


def _unknown_key(key: str, where: str) -> ConfigError:
    known = list(_keys(get_config()))
    tail = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1].upper()]
    guesses = list(dict.fromkeys([*closest(key, known, 3), *tail]))[:4]
    hint = f" Did you mean {' or '.join(guesses)}?" if guesses else " See the configuration reference."
    return ConfigError(f"{where}: unknown key {key}.{hint}")


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _read_yaml(path: Path, referrer: Path | None) -> dict[str, Any]:
    named_by = f" (named by {BASE_KEY} in {referrer})" if referrer else ""
    if path.suffix not in {".yaml", ".yml"} and not folder_fault(path):
        raise ConfigError(f"{path}{named_by} is a folder. Expected a .yaml file, such as a run's config.yaml.")
    if path.suffix in {".onnx", ".pt2", ".xml"}:
        raise ConfigError(
            f"{path}{named_by} is an exported model, which `predict`, `eval`, `report` and `benchmark` take. "
            "Here, expected a run folder or a .yaml file."
        )
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"{path}{named_by}: expected a .yaml file. Python configs are not run.{_siblings(path)}")
    if fault := file_fault(path):
        raise ConfigError(f"{path}{named_by}: this config {fault}.{_siblings(path)}")
    return _require_sections(read_plain_yaml(path, ConfigError), str(path))


def _require_sections(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{where}: expected sections with keys (MODEL: …), found {found}.")
    return tree


def _siblings(path: Path) -> str:
    if folder_fault(path.parent):
        return ""
    names = {p.name for p in path.parent.glob("*.y*ml") if not file_fault(p)}
    return did_you_mean(path.name, names, 3)
