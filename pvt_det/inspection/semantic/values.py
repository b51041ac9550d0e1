"""Find out which values of label maps are classes, and which one means no class (void)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pvt_det.data.coco.findings import Findings
from pvt_det.inspection.inspect import Advice
from pvt_det.utils.text import listed

# The usual value of void, and one that 8-bit arithmetic makes of -2.
_USUAL = (255, 254)
# A value counts as void if it exceeds the highest of the others, which have no gap, by more than this and by more than
# that highest value.
_GAP = 10
# Colors of void in palettes.
_VOID_COLORS = ((0, 0, 0), (255, 255, 255), (224, 224, 192))
# Fewer values than this share of the class numbers look like gray levels, certainly if they are only a few.
_MIN_DENSITY, _FEW = 0.25, 8
_GRAY_LEVELS = "values with large gaps, which look like gray levels"


@dataclass(frozen=True)
class LabelScheme:
    """The meaning of the values in label maps.

    Attributes:
        class_names: Names by value, from 0 on. If the value of void is lower than that of a class, it has a name too.
        ignore_value: Value of pixels without a class.
        reason: Why `ignore_value` is void.
    """

    class_names: tuple[str, ...]
    ignore_value: int
    reason: str

    @property
    def classes(self) -> list[int]:
        """The values that are classes."""
        return [value for value in range(len(self.class_names)) if value != self.ignore_value]


def find_scheme(
    pixels: npt.NDArray[np.int64],
    names: Mapping[int, str] | None,
    ignore_value: int | None,
    palette: npt.NDArray[np.uint8] | None,
) -> LabelScheme:
    """Find out which values are classes, and which one is void.

    A single value beside the named ones is void: 11 beside 11 names, or 0 beside the names of 1 to 150.

    Args:
        pixels: Number of pixels of each value, 256 counts.
        names: Class names by value, or None if they are not known.
        ignore_value: The value of void, or None to find it.
        palette: Colors of the values, `N×3` RGB, if all label maps have this palette. Otherwise None.

    Returns:
        The scheme. Values that occur, but are neither void nor below the number of classes, are left to the caller.
    """
    values = np.flatnonzero(pixels).tolist()
    if ignore_value is not None:
        void, reason = ignore_value, "given by --ignore-value"
    else:
        void, reason = _named_void(values, names) if names else _find_void(values, palette)
    if names:
        number = max(value for value in names if value != void) + 1
    else:
        number = max((value for value in values if value != void), default=0) + 1
    known = {} if names is None else names
    unused = "void" if "void" not in known.values() else f"void {void}"
    return LabelScheme(
        tuple(unused if value == void else known.get(value, f"class {value}") for value in range(number)), void, reason
    )


def _named_void(values: Sequence[int], names: Mapping[int, str]) -> tuple[int, str]:
    extra = [value for value in values if value not in names]
    if len(extra) == 1:
        return extra[0], "the only value without a name"
    usual = next((value for value in _USUAL if value in extra), None)
    if usual is not None:
        return usual, "the usual value"
    return _unused(names), "no pixel has it: all values are classes"


def _find_void(values: Sequence[int], palette: npt.NDArray[np.uint8] | None) -> tuple[int, str]:
    usual = next((value for value in _USUAL if value in values), None)
    if usual is not None:
        return usual, "the usual value"
    *others, highest = values or [0]
    if len(others) > 1:
        is_contiguous = others[-1] - others[0] == len(others) - 1
        if is_contiguous and highest - others[-1] > max(_GAP, others[-1]):
            return highest, f"far above the other values, {others[0]} to {others[-1]}"
        if is_contiguous and highest == others[-1] + 1 and _is_painted_as_void(others, highest, palette):
            return highest, "the highest value, and its color in the palette is the usual one of void"
    return _unused(values), "no pixel has it"


def _is_painted_as_void(others: Sequence[int], highest: int, palette: npt.NDArray[np.uint8] | None) -> bool:
    if palette is None:
        return False
    # Entries that a palette leaves out are black.
    colors = [tuple(palette[value].tolist()) if value < len(palette) else (0, 0, 0) for value in (*others, highest)]
    return colors[-1] in _VOID_COLORS and colors[-1] not in colors[:-1]


def _unused(used: Sequence[int] | Mapping[int, str]) -> int:
    return next(value for value in range(_USUAL[0], -1, -1) if value not in used)


def check_scheme(
    scheme: LabelScheme, pixels: npt.NDArray[np.int64], findings: Findings, *, has_names: bool
) -> list[Advice]:
    """Check that label maps have at least two classes, and collect advice on their values.

    Args:
        scheme: The meaning of the values.
        pixels: Number of pixels of each value, 256 counts.
        findings: Receives what makes training impossible.
        has_names: Whether the user named the classes.

    Returns:
        What to review.
    """
    values = np.flatnonzero(pixels).tolist()
    classes = [value for value in values if value != scheme.ignore_value]
    if values and len(classes) < 2:
        findings.add(*_single_class(values, scheme), fatal=True)
        return []
    if has_names or not classes:
        return []
    if len(classes) >= _MIN_DENSITY * len(scheme.class_names):
        return [_unnamed(classes, scheme, has_void=scheme.ignore_value in values)]
    offender = f"{value_list(classes)}: write class numbers instead, or name the classes with --class-names FILE"
    if len(classes) <= _FEW:
        findings.add(f"{_GRAY_LEVELS}, not class numbers 0, 1, 2, …", offender, fatal=True)
        return []
    return [Advice(_GRAY_LEVELS, len(classes), names=[offender])]


def _single_class(values: Sequence[int], scheme: LabelScheme) -> tuple[str, str]:
    if len(values) == 1:
        return "label maps with a single value", f"{values[0]}: expected at least two classes"
    low, high = values
    only = low if high == scheme.ignore_value else high
    return (
        "label maps with a single class beside void, which look like masks of one kind of object",
        f"{low} and {high}, with {scheme.ignore_value} as void ({scheme.reason}) and {only} as the only class: write "
        f"class numbers, 0 for {low} and 1 for {high}",
    )


def _unnamed(classes: Sequence[int], scheme: LabelScheme, *, has_void: bool) -> Advice:
    first, last = scheme.class_names[classes[0]], scheme.class_names[classes[-1]]
    text = f"classes without names, called {first!r} to {last!r}: name them with --class-names FILE"
    if not has_void and len(classes) > 2:
        value = classes[-1]
        text += (
            f". No value is void: if {value}, the highest, marks pixels without a class, add --ignore-value {value} "
            f"(MODEL.SEM_SEG_HEAD.IGNORE_VALUE {value}), so that it does not become one more class"
        )
    return Advice(text, len(classes))


def value_list(values: Sequence[int]) -> str:
    """Write values as ranges: "0 to 10, 255".

    Args:
        values: The values in ascending order.
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return listed(parts, 20)
