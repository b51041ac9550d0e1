"""Read YAML files from users safely: no code runs, and aliases cannot expand to huge values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pvt_det.errors import PvtDetError

# Limit on the number of values that all aliases of a file expand to. A dumped config has a few dozen.
_MAX_ALIASED = 10_000
_KINDS = {str: "a string", int: "an integer"}


def read_text(path: Path, error: type[PvtDetError]) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark.

    Args:
        path: An existing file.
        error: Type of the error to raise.

    Returns:
        The content of the file.

    Raises:
        PvtDetError: The file cannot be read, or is not UTF-8. The error has the given type.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as fault:
        raise error(f"{path}: cannot be read ({fault.strerror}).") from fault
    except UnicodeDecodeError as fault:
        raise error(f"{path}: not a text file in UTF-8: {fault}. Save it as UTF-8.") from fault


def read_plain_yaml(path: Path, error: type[PvtDetError], *, keys: tuple[type, ...] = (str,)) -> Any:
    """Read a file of plain YAML: mappings, lists and scalars, without tags.

    Duplicate keys are refused. Aliases may refer only to flat lists, as in dumped configs, and their total size is
    limited, so they can neither be circular nor expand exponentially.

    Args:
        path: An existing file.
        error: Type of the error to raise.
        keys: Types that the keys of mappings may have.

    Returns:
        The content of the file.

    Raises:
        PvtDetError: The file cannot be read, is not UTF-8, or is not plain YAML. The error has the given type.
    """
    return parse_plain_yaml(read_text(path, error), str(path), error, keys=keys)


def parse_plain_yaml(text: str, where: str, error: type[PvtDetError], *, keys: tuple[type, ...] = (str,)) -> Any:
    """Parse plain YAML, with the limits of `read_plain_yaml`.

    Args:
        text: The YAML.
        where: Where it is from, for messages.
        error: Type of the error to raise.
        keys: Types that the keys of mappings may have.

    Returns:
        The content.

    Raises:
        PvtDetError: The text is not plain YAML. The error has the given type.
    """
    try:
        return _PlainLoader(text, keys).get_single_data()
    except yaml.YAMLError as fault:
        raise error(f"{where}: {_one_line(fault)}") from fault
    except RecursionError as fault:
        raise error(f"{where}: nested too deeply. Expected a few levels.") from fault
    except (ValueError, OverflowError) as fault:  # a number with thousands of digits, or a date in month 13
        raise error(f"{where}: {fault}.") from fault


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
            problem = f"tag {event.tag} is refused: only plain values are allowed, and no code is run"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def _alias_problem(self, anchor: str | None) -> str:
        values = _flat_list(self.anchors.get(anchor))
        if values is None:
            return f"alias *{anchor} is refused: only flat lists can be aliased. Write the value out"
        self._aliased += len(values)
        return f"aliases expand to more than {_MAX_ALIASED} values" if self._aliased > _MAX_ALIASED else ""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, self._keys):
                problem = f"key {key!r} is not {' or '.join(_KINDS[kind] for kind in self._keys)}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                problem = f"{key} appears twice, first in line {seen[key]}. Merge the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _flat_list(node: yaml.Node | None) -> list[yaml.Node] | None:
    # A list without an end mark is still being read, so the alias is circular.
    if not isinstance(node, yaml.SequenceNode) or node.end_mark is None:
        return None
    return node.value if all(isinstance(item, yaml.ScalarNode) for item in node.value) else None
