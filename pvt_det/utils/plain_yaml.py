"""YAML files that a user hands in, read without running anything in them, and without growing beyond their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pvt_det.errors import PvtDetError

# How many values all aliases of a file together may stand for; a dumped config has some dozens.
_MOST_ALIASED = 10_000
_KINDS = {str: "a text", int: "a number"}


def read_text(path: Path, error: type[PvtDetError]) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark.

    Args:
        path: An existing file.
        error: What to raise.

    Raises:
        PvtDetError: The given kind of it: the file cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror}).") from fault
    except UnicodeDecodeError as fault:
        raise error(f"{path}: not a text file in UTF-8: {fault}. Save it as UTF-8.") from fault


def read_plain_yaml(path: Path, error: type[PvtDetError], *, keys: tuple[type, ...] = (str,)) -> Any:
    """Read a file of plain YAML: mappings, lists and scalars, without tags.

    A key of a mapping stands once. Aliases stand for flat lists only, as in dumped configs, and for few values in all:
    no circle or explosion can be made of them.

    Args:
        path: An existing file.
        error: What to raise.
        keys: What the keys of mappings may be.

    Raises:
        PvtDetError: The given kind of it: the file cannot be read, is no UTF-8, or not plain YAML.
    """
    text = read_text(path, error)
    try:
        return _PlainLoader(text, keys).get_single_data()
    except yaml.YAMLError as fault:
        raise error(f"{path}: {_one_line(fault)}") from fault
    except RecursionError as fault:
        raise error(f"{path}: nested too deep: expected a few levels.") from fault
    except (ValueError, OverflowError) as fault:  # a number of thousands of digits, a date in month 13
        raise error(f"{path}: {fault}.") from fault


def _one_line(error: yaml.YAMLError) -> str:
    text = str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        text = f"line {error.problem_mark.line + 1}: {error.problem}."
    return " ".join(text.split())


class _PlainLoader(yaml.SafeLoader):
    def __init__(self, text: str, keys: tuple[type, ...]) -> None:
        super().__init__(text)
        self._keys = keys
        self._aliased = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = self._alias_problem(event.anchor)
        elif event.tag is not None:
            problem = f"tag {event.tag} is refused: plain values alone can stand here, and nothing is run"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def _alias_problem(self, anchor: str | None) -> str:
        values = _flat_list(self.anchors.get(anchor))
        if values is None:
            return f"alias *{anchor} is refused: only flat lists can be named; write the value out"
        self._aliased += len(values)
        return f"aliases stand for more than {_MOST_ALIASED} values" if self._aliased > _MOST_ALIASED else ""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, self._keys):
                problem = f"key {key!r} is not {' or '.join(_KINDS[kind] for kind in self._keys)}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                problem = f"{key} stands twice, first in line {seen[key]}; merge the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _flat_list(node: yaml.Node | None) -> list[yaml.Node] | None:
    if not isinstance(node, yaml.SequenceNode) or node.end_mark is None:  # without an end mark it is still being read
        return None
    return node.value if all(isinstance(item, yaml.ScalarNode) for item in node.value) else None
