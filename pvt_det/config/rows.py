"""Rows of the table of config keys, and the rules that many of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pvt_det.config.rules import Rule, flag, integer, list_of, number, text, text_or_list

if TYPE_CHECKING:
    from detectron2.config import CfgNode


@dataclass(frozen=True)
class Limit:
    """A limit that another key sets.

    Args:
        key: Dotted name of the other key.
        holds: Function of the value and of the other key's value that returns whether the limit is kept.
        expected: What is expected of the value, followed by the other key's name in messages, such as "at most".
        applies: Function of the config that returns whether the limit applies.
        reason: Sentence that ends the message and says why there is a limit.
    """

    key: str
    holds: Callable[[Any, Any], bool]
    expected: str
    applies: Callable[[CfgNode], bool] = lambda cfg: True
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """A key of the table.

    Args:
        key: Dotted name of the key.
        rule: Valid values.
        meaning: What the key does.
        default: The default value of a key that this package adds. Detectron2 sets those of its own keys.
        limit: A limit that another key sets.
    """

    key: str
    rule: Rule
    meaning: str
    default: Any = None
    limit: Limit | None = None


# Rules that many keys share.
MANY = 1_000_000_000
SIDE = 20_000  # pixels
FLAG = flag()
TEXT = text()
NAMES = list_of(text(required=True))
PATHS = text_or_list()
PROBABILITY = number(at_least=0, at_most=1)
RATE = number(at_least=0, below=1)
SHARE = number(above=0, at_most=1)
PIXELS = integer(1, SIDE)
COUNT = integer(1, 1_000_000)
CLASSES = integer(1, 100_000)
BOX_WEIGHTS = list_of(number(above=0, at_most=1000), length=4)
WEIGHT = number(at_least=0, at_most=1000)
