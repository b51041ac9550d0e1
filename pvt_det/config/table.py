"""The table of all config keys that have a description, and the check of a single value.

`validate_config` applies the table, and the configuration reference of the documentation prints it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pvt_det.config.detectron2_keys import DETECTRON2_KEYS
from pvt_det.config.keys import ADDED_KEYS
from pvt_det.config.rows import Row
from pvt_det.config.rules import shown
from pvt_det.errors import ConfigError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

SECTIONS: dict[str, list[Row]] = {**ADDED_KEYS, **DETECTRON2_KEYS}
TABLE: dict[str, Row] = {row.key: row for rows in SECTIONS.values() for row in rows}


def get_value(cfg: CfgNode, key: str) -> Any:
    """Return the value of a key.

    Args:
        cfg: A complete config.
        key: Dotted name of the key.
    """
    node: Any = cfg
    for name in key.split("."):
        node = node[name]
    return node


def set_value(cfg: CfgNode, key: str, value: Any) -> None:
    """Set the value of a key.

    Args:
        cfg: A complete config, not frozen.
        key: Dotted name of the key.
        value: The new value.
    """
    section, _, name = key.rpartition(".")
    node = get_value(cfg, section) if section else cfg
    node[name] = value


def choices(key: str) -> tuple[Any, ...]:
    """Return the valid values of a key that has a fixed set of them.

    Args:
        key: Dotted name of the key.
    """
    return tuple(TABLE[key].rule.choices())


def require_valid(key: str, value: Any, where: str = "") -> Any:
    """Return a value if it is valid for a key.

    Args:
        key: Dotted name of a key of the table.
        value: Value to check.
        where: File that the value comes from, for the message.

    Raises:
        ConfigError: The value is invalid. The message says what is expected, and suggests the closest choice.
    """
    rule = TABLE[key].rule
    if not rule.accepts(value):
        origin = f"{where}: " if where else ""
        raise ConfigError(f"{origin}{key} = {shown(value)}: expected {rule.expected}.{rule.hint(value)}")
    return value
