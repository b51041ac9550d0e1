"""Print an inspection of label maps in the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from pvt_det.inspection.semantic.inspection import LabelInspection
from pvt_det.inspection.semantic.scan import conversion
from pvt_det.inspection.semantic.values import value_list
from pvt_det.inspection.terminal import image_sizes, show_advice, show_problems, show_summary
from pvt_det.utils.colors import class_colors
from pvt_det.utils.text import counted

_BAR = 30
_MOST_CLASSES = 40
_NAME_WIDTH = 32


def summary(found: LabelInspection) -> list[tuple[str, str]]:
    """Return the main numbers of a data set as pairs of name and value.

    Args:
        found: Inspection of the data set.
    """
    scheme, files = found.scheme, found.files
    values = value_list(np.flatnonzero(found.scan.pixels).tolist())
    if not files:
        return [("Label maps", "none that can be used")]
    with_pixels = sum(each.images > 0 for each in found.classes)
    share = f", {found.void_share:.2%} of the pixels" if found.void_share else ""
    palettes = sum(each.palette is not None for each in files)
    palette = {0: "none", len(files): "in all label maps"}.get(
        palettes, f"in {palettes:,} of {len(files):,} label maps"
    )
    return [
        ("Label maps", f"{len(files):,} with an image"),
        ("Image sizes", image_sizes(found.sizes)),
        ("Values", values or "none"),
        ("Classes", f"{len(scheme.classes):,}, {with_pixels:,} of them with pixels"),
        ("Void", f"value {scheme.ignore_value}{share} ({scheme.reason})"),
        ("Palette", palette if palettes == 0 else f"{palette}; only its indices count, not its colors"),
    ]


def show(console: Console, title: str, found: LabelInspection, on_error: str) -> None:
    """Print the classes, problems and advice of a data set.

    Args:
        console: Console to print to.
        title: Title, such as "Training data".
        found: Inspection of the data set.
        on_error: Value of DATASETS.ON_ERROR, which decides whether problems are dropped or refused.
    """
    show_summary(console, f"{title}: {found.label_root}", summary(found))
    if found.files:
        console.print(_classes(found))
    show_problems(console, found.scan.findings, on_error)
    if found.scan.colors:
        console.print("[bold]Training needs one channel with class numbers. This script converts the colors:")
        console.print(Syntax(conversion(found.scan.colors), "python", background_color="default", word_wrap=True))
    show_advice(console, found.advice)
    if not found.scan.findings.problems and not found.advice:
        console.print("[bold green]no problems found")


def _classes(found: LabelInspection) -> Table:
    table = Table(
        title="Classes by share of the labeled pixels",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("value", justify="right")
    table.add_column("")
    table.add_column("class", no_wrap=True, max_width=_NAME_WIDTH)
    table.add_column("pixels", justify="right", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    ordered = sorted((each for each in found.classes if each.images), key=lambda each: -each.share)
    most = max((each.share for each in ordered), default=0) or 1
    for each in ordered[:_MOST_CLASSES]:
        red, green, blue = class_colors()[each.value].tolist()
        table.add_row(
            str(each.value),
            Text("■", style=f"rgb({red},{green},{blue})"),
            escape(each.name),
            f"{each.share:.2%}",
            f"{each.images:,}",
            "█" * max(1, round(_BAR * each.share / most)),
        )
    if len(ordered) > _MOST_CLASSES:
        others = counted(len(ordered) - _MOST_CLASSES, "class", "classes")
        table.add_row("…", "", f"and {others} with fewer pixels", "", "", "")
    return table
