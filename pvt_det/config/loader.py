"""Reads YAML configs without running anything in them.

Detectron2's own reader falls back to a YAML loader that builds Python objects, and takes `.py` files. This one takes
plain YAML only, refuses duplicate keys, and names the file and the key of whatever is wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from pvt_det.config.keys import get_config
from pvt_det.config.validate import validate_config
from pvt_det.config.values import coerce
from pvt_det.errors import ConfigError

BASE_KEY = "_BASE_"
_COMMAND_LINE = "command line"


def load_config(path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Read a config file over the defaults, then `KEY VALUE` pairs over it, and check the outcome.

    A file may name files to start from: `_BASE_: file.yaml` or a list of them, relative to itself. Later entries win
    over earlier ones, and the file itself over all.

    Args:
        path: A `.yaml` or `.yml` file.
        overrides: `["SOLVER.MAX_ITER", "100", "MODEL.PVT.VARIANT", "pvt_tiny"]`, as they come from a command line.

    Returns:
        A config that is not frozen.

    Raises:
        ConfigError: A file is missing, not plain YAML or part of a circle; a key is unknown or given twice; a value is
            of the wrong type or out of range.
    """
    cfg = get_config()
    _merge_file(cfg, Path(path), chain=())
    _merge_overrides(cfg, overrides)
    validate_config(cfg, where=str(path))
    return cfg


def _merge_file(cfg: CfgNode, path: Path, chain: tuple[Path, ...]) -> None:
    resolved = path.resolve()
    if resolved in chain:
        circle = " → ".join(str(p) for p in (*chain[chain.index(resolved) :], resolved))
        raise ConfigError(f"{BASE_KEY} goes in a circle: {circle}. Remove one of these references.")
    tree = _read_yaml(path, referrer=chain[-1] if chain else None)
    for base in _bases(tree.pop(BASE_KEY, []), path):
        _merge_file(cfg, path.parent / base, (*chain, resolved))
    _merge_tree(cfg, tree, root=cfg, prefix="", where=str(path))


def _bases(value: Any, path: Path) -> list[str]:
    bases = [value] if isinstance(value, str) else value
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise ConfigError(f"{path}: {BASE_KEY} = {value!r}: expected a file name or a list of file names.")
    return bases


def _merge_tree(cfg: CfgNode, tree: Mapping[str, Any], root: CfgNode, prefix: str, where: str) -> None:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in cfg:
            raise _unknown_key(root, key, where)
        if isinstance(cfg[name], CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{where}: {key} = {value!r}: expected a section with keys such as {_some(cfg[name])}."
                )
            _merge_tree(cfg[name], value, root, f"{key}.", where)
        elif key == "VERSION" and value != cfg[name]:
            raise ConfigError(f"{where}: VERSION = {value!r}: only version {cfg[name]} of Detectron2's keys is known.")
        else:
            cfg[name] = coerce(value, cfg[name], key, where)


def _merge_overrides(cfg: CfgNode, overrides: Sequence[Any]) -> None:
    if len(overrides) % 2:
        raise ConfigError(
            f"{_COMMAND_LINE}: {list(overrides)} is an odd number of words; expected pairs, KEY VALUE KEY VALUE …"
        )
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        tree = value
        for name in reversed(str(key).split(".")):
            tree = {name: tree}
        _merge_tree(cfg, tree, root=cfg, prefix="", where=_COMMAND_LINE)


def _unknown_key(root: CfgNode, key: str, where: str) -> ConfigError:
    known = list(_keys(root))
    by_folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(key.lower(), by_folded, n=3, cutoff=0.6)
    tail = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1].upper()]
    guesses = list(dict.fromkeys([*(by_folded[k] for k in near), *tail]))[:4]
    hint = f" Did you mean {' or '.join(guesses)}?" if guesses else " See pvt_det/config/keys.py and Detectron2's keys."
    return ConfigError(f"{where}: unknown key {key}.{hint}")


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")


def _some(cfg: CfgNode) -> str:
    return ", ".join(list(cfg)[:3])


def _read_yaml(path: Path, referrer: Path | None) -> dict[str, Any]:
    named_by = f" (named by {BASE_KEY} in {referrer})" if referrer else ""
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"{path}{named_by}: a config is a .yaml file; Python configs are not run.")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}{named_by}: cannot read this config: {error.strerror}.{_siblings(path)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}{named_by}: not a text file in UTF-8: {error}.") from error
    try:
        tree = yaml.load(text, _PlainLoader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep for a config.") from error
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(f"{path}: expected sections with keys (MODEL: …), found {found}.")
    return tree


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}."
    return " ".join(str(error).split())


class _PlainLoader(yaml.SafeLoader):
    """Mappings with text keys, each once; lists; scalars. No tags of any application, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"alias *{event.anchor} is not supported in configs; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a text", key_node.start_mark)
            if key in seen:
                problem = f"{key} stands twice, first in line {seen[key]}; merge the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def refuse_tag(self, node: Any) -> Any:
        problem = f"the tag {node.tag} is refused: configs hold plain values only and run nothing"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_PlainLoader.add_constructor(None, _PlainLoader.refuse_tag)
