"""Rules that say which values a config key takes, in code and in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pvt_det.utils.text import did_you_mean

Order = Literal["", "ascending", "strictly ascending"]


@dataclass(frozen=True)
class Rule:
    """The valid values of a key.

    Args:
        accepts: Function that returns whether a value of any type is valid.
        describe: Function that returns the description of one valid value, such as "an integer, 1 to 9", and that of
            several values in a list, such as "integers, 1 to 9".
        example: A value that shows the type, for keys whose default is an empty list or null.
        choices: Function that returns the valid values, if there is a fixed set of them. Registries are read when it is
            called, because models can be registered at any time.
        reason: Sentence that says why no other value is valid.
        may_be_infinite: Whether infinity is a valid number.
        may_be_list: Whether a list of values with the example's type is valid too.
    """

    accepts: Callable[[Any], bool]
    describe: Callable[[], tuple[str, str]]
    example: Any = ""
    choices: Callable[[], Sequence[Any]] = tuple
    reason: str = ""
    may_be_infinite: bool = False
    may_be_list: bool = False

    @property
    def expected(self) -> str:
        """Description of a valid value, such as "an integer, 1 to 9"."""
        return self.describe()[0]

    def hint(self, value: Any) -> str:
        """Return a sentence that helps to correct a value, with a leading space, or "".

        Args:
            value: The invalid value.
        """
        return f" {self.reason}" if self.reason else did_you_mean(str(value), [str(name) for name in self.choices()])


def flag() -> Rule:
    """Return the rule of a key that is true or false."""
    return Rule(lambda value: isinstance(value, bool), lambda: ("true or false", "true or false"), example=False)


def only(value: Any, reason: str) -> Rule:
    """Return the rule of a key that has a single valid value.

    Args:
        value: The valid value.
        reason: Sentence that says why, for messages.
    """
    return Rule(lambda other: _equal(other, value), lambda: (repr(value), repr(value)), example=value, reason=reason)


def number(
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    or_infinity: bool = False,
) -> Rule:
    """Return the rule of a number in an interval. Integers are numbers too, NaN is not.

    Args:
        at_least: Smallest valid number.
        above: Lower limit that is itself too small, instead of `at_least`.
        at_most: Largest valid number.
        below: Upper limit that is itself too large, instead of `at_most`.
        or_infinity: Whether infinity is valid too.
    """

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        # Comparisons with NaN are false.
        inside = at_least <= value <= at_most and above < value < below and math.isfinite(value)
        return inside or (or_infinity and value == math.inf)

    if above == -math.inf and below == math.inf:
        limits = f"{at_least:,g} to {at_most:,g}"
    else:
        low = f"above {above:,g}" if above > -math.inf else f"{at_least:,g} or more"
        limits = low + (f" and less than {below:,g}" if below < math.inf else f" and at most {at_most:,g}")
    limits += ", or infinity" if or_infinity else ""
    words = f"a number, {limits}", f"numbers, {limits}"
    return Rule(accepts, lambda: words, example=0.0, may_be_infinite=or_infinity)


def integer(low: int, high: int, *, multiple_of: int = 1, or_minus_one: bool = False) -> Rule:
    """Return the rule of an integer in a range.

    Args:
        low: Smallest valid integer.
        high: Largest valid integer.
        multiple_of: Number by which valid integers are divisible.
        or_minus_one: Whether -1 is valid too.
    """

    def accepts(value: Any) -> bool:
        if type(value) is not int:
            return False
        return (low <= value <= high and value % multiple_of == 0) or (or_minus_one and value == -1)

    limits = f", {low:,} to {high:,}" + (", or -1" if or_minus_one else "")
    one, many = ("an integer", "integers") if multiple_of == 1 else (f"a multiple of {multiple_of}",) * 2
    return Rule(accepts, lambda: (one + limits, many + limits), example=0)


def choice(values: Sequence[Any] | Callable[[], Sequence[Any]]) -> Rule:
    """Return the rule of a key with a fixed set of values.

    Args:
        values: The valid values, or a function that returns them.
    """
    choices = values if callable(values) else lambda: values

    def describe() -> tuple[str, str]:
        listed = ", ".join(repr(name) if name == "" else str(name) for name in choices())
        return f"one of {listed}", f"values among {listed}"

    example = "" if callable(values) else values[0]
    return Rule(lambda value: any(_equal(value, name) for name in choices()), describe, example, choices)


def text(*, required: bool = False) -> Rule:
    """Return the rule of a string.

    Args:
        required: Whether the empty string is invalid.
    """
    words = ("a string that is not empty", "strings that are not empty") if required else ("a string", "strings")
    return Rule(lambda value: isinstance(value, str) and bool(value or not required), lambda: words)


def text_or_list() -> Rule:
    """Return the rule of a key that is a string, or a list of one or more strings that are not empty."""
    several = list_of(text(required=True), 1)
    expected = f"a string, or {several.expected}"
    return Rule(
        lambda value: isinstance(value, str) or several.accepts(value),
        lambda: (expected, expected),
        may_be_list=True,
    )


def matching(matches: Callable[[str], bool], expected: str) -> Rule:
    """Return the rule of a string for which a function holds.

    Args:
        matches: Function that returns whether a string is valid.
        expected: Description of a valid string.
    """
    return Rule(lambda value: isinstance(value, str) and matches(value), lambda: (expected, expected))


def or_null(rule: Rule) -> Rule:
    """Return the rule of a key that can also be null.

    Args:
        rule: Rule of all other values.
    """
    expected = f"{rule.expected}, or null"
    return Rule(lambda value: value is None or rule.accepts(value), lambda: (expected, expected), example=rule.example)


def list_of(item: Rule, at_least: int = 0, *, length: int | None = None, order: Order = "") -> Rule:
    """Return the rule of a list or tuple.

    Args:
        item: Rule of the elements.
        at_least: Smallest number of elements.
        length: Number of elements, if it is fixed.
        order: "ascending" if no element may be smaller than the one before, "strictly ascending" if none may be equal.
    """

    def accepts(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not all(map(item.accepts, value)):
            return False
        if len(value) < at_least or length not in (None, len(value)):
            return False
        return not order or _is_ascending(value, strictly=order == "strictly ascending")

    count = f"{length} " if length is not None else f"{at_least} or more " if at_least else ""
    suffix = f", in {order} order" if order else ""

    def describe() -> tuple[str, str]:
        content = f"{count}{item.describe()[1]}{suffix}"
        return f"a list of {content}", f"lists of {content}"

    return Rule(accepts, describe, example=[item.example])


def in_order(names: Sequence[str]) -> Rule:
    """Return the rule of a list of one or more of some names, each at most once, in the given order.

    Args:
        names: The names.
    """

    def accepts(value: Any) -> bool:
        return isinstance(value, list | tuple) and [name for name in names if name in value] == list(value) != []

    expected = f"a list of one or more of {', '.join(names)}, each once, in this order"
    return Rule(accepts, lambda: (expected, expected), example=[""])


def _equal(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def _is_ascending(values: Sequence[Any], *, strictly: bool) -> bool:
    pairs = itertools.pairwise(values)
    return all(first < second or (first == second and not strictly) for first, second in pairs)


def shown(value: Any) -> str:
    """Format a value for messages as the user would write it, cut to 100 characters.

    Args:
        value: The value.
    """
    try:
        formatted = "null" if value is None else repr(value)
    except ValueError:  # an integer of thousands of digits
        formatted = "a very long number"
    return formatted if len(formatted) <= 100 else f"{formatted[:100]}…"
