"""Print an inspection in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pvt_det.data.coco.findings import Findings
from pvt_det.data.formats import VOC_FORMAT
from pvt_det.inspection.inspect import Advice, Inspection
from pvt_det.inspection.split import Split
from pvt_det.inspection.statistics import ClassCount, Statistics

_BAR = 30
_MOST_CLASSES = 30
_SHOWN = 3
_OUTCOMES = {"refused": "bold red", "dropped": "yellow", "fixed": "green"}
_DIFFICULT = " (objects marked difficult in Pascal VOC, ignored in training and evaluation)"


def summary(inspection: Inspection) -> list[tuple[str, str]]:
    """Return the main numbers of a data set as pairs of name and value.

    Args:
        inspection: Inspection of the data set.
    """
    s = inspection.statistics
    masks = "none" if not s.polygons + s.run_lengths else f"{s.polygons:,} polygons, {s.run_lengths:,} run-length"
    per_image = s.per_image if s.images else np.zeros(1, int)
    return [
        ("Format", inspection.format),
        ("Image folder", str(inspection.image_root)),
        ("Images", f"{s.images:,}, {s.empty_images:,} of them without objects"),
        ("Image sizes", image_sizes(s.image_sizes)),
        ("Objects", f"{s.objects:,}; {np.median(per_image):g} per image (median), at most {per_image.max():,}"),
        ("Crowd regions", f"{s.crowds:,}{_DIFFICULT if s.crowds and inspection.format == VOC_FORMAT else ''}"),
        ("Masks", masks),
        ("Classes", f"{len(s.classes):,}"),
    ]


def by_frequency(statistics: Statistics) -> list[ClassCount]:
    """Sort classes by number of objects, largest first.

    Args:
        statistics: Statistics of the data set.
    """
    return sorted(statistics.classes, key=lambda count: -count.objects)


def image_sizes(sizes: Sequence[tuple[tuple[int, int], int]]) -> str:
    """Describe the range of image sizes and the most frequent one.

    Args:
        sizes: Pairs of image size (width, height) and number of images, the most frequent size first.
    """
    if not sizes:
        return "none"
    (width, height), count = sizes[0]
    if len(sizes) == 1:
        return f"all {width} x {height}"
    (w1, h1), (w2, h2) = np.min([size for size, _ in sizes], axis=0), np.max([size for size, _ in sizes], axis=0)
    most = f"; {count:,} are {width} x {height}" if count > 1 else ""
    return f"{len(sizes):,} sizes from {w1} to {w2} wide and {h1} to {h2} high{most}"


def show(console: Console, title: str, inspection: Inspection, on_error: str) -> None:
    """Print statistics, problems and advice of a data set.

    Args:
        console: Console to print to.
        title: Title, such as "Training data".
        inspection: Inspection of the data set.
        on_error: Value of DATASETS.ON_ERROR, which decides whether problems are fixed, dropped or refused.
    """
    show_summary(console, f"{title}: {inspection.source}", summary(inspection))
    s = inspection.statistics
    counted = [c for c in by_frequency(s) if c.objects]
    console.print(_bars("Objects by class", {c.name: c.objects for c in counted[:_MOST_CLASSES]}))
    if len(counted) > _MOST_CLASSES:
        console.print(f"… and {len(counted) - _MOST_CLASSES} classes with fewer objects")
    console.print(_bars("Objects by size (sqrt of the box area)", s.box_histogram()))
    show_problems(console, inspection.findings, on_error)
    show_advice(console, inspection.advice)
    if not inspection.findings.problems and not inspection.advice:
        console.print("[bold green]no problems found")


def show_summary(console: Console, title: str, facts: Sequence[tuple[str, str]]) -> None:
    """Print the main numbers of a data set below a title.

    Args:
        console: Console to print to.
        title: The title, with the files of the data set.
        facts: Pairs of name and value.
    """
    console.rule(f"[bold]{escape(title)}", align="left")
    table = Table.grid(padding=(0, 2))
    for name, value in facts:
        table.add_row(name, escape(value))
    console.print(table)


def show_problems(console: Console, findings: Findings, on_error: str) -> None:
    """Print one line per kind of problem.

    Args:
        console: Console to print to.
        findings: The problems.
        on_error: Value of DATASETS.ON_ERROR, which decides whether problems are fixed, dropped or refused.
    """
    for line in findings.lines(on_error):
        console.print(f"[{_OUTCOMES[line.split(':')[0]]}]{escape(line)}")


def show_advice(console: Console, advice: Sequence[Advice]) -> None:
    """Print one line per piece of advice.

    Args:
        console: Console to print to.
        advice: What to review.
    """
    for item in advice:
        console.print(f"[yellow]look at: {escape(advice_line(item))}")


def show_split(console: Console, split: Split) -> None:
    """Print the number of images and objects of each class in both parts of a data set.

    Args:
        console: Console to print to.
        split: The split data set.
    """
    train, val = split.train.statistics, split.val.statistics
    total = train.images + val.images
    console.rule("[bold]Split", align="left")
    together = [len(group) for group in split.groups if len(group) > 1]
    console.print(f"{val.images:,} of {total:,} images ({val.images / total:.1%}) are for validation.")
    if together:
        console.print(
            f"{sum(together):,} images are near duplicates or copies of others. Each of their {len(together):,} "
            f"groups, the largest with {max(together):,} images, stays on one side."
        )
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for name in ("train images", "train objects", "val images", "val objects"):
        table.add_column(name, justify="right")
    rows = [("all", train.images, train.objects, val.images, val.objects)]
    pairs = zip(train.classes, val.classes, strict=True)
    rows += [(here.name, here.images, here.objects, there.images, there.objects) for here, there in pairs]
    for name, *counts in rows:
        table.add_row(escape(name), *(f"{count:,}" for count in counts))
    console.print(table)


def advice_line(item: Advice) -> str:
    """Format a piece of advice as one line, with its count and the first names.

    Args:
        item: What to review.
    """
    # The names of places contain commas: "a.xml, line 9".
    separator = "; " if any("," in name for name in item.names) else ", "
    more = ", …" if len(item.names) > _SHOWN else ""
    return f"{item.count:,} x {item.text}" + (f": {separator.join(item.names[:_SHOWN])}{more}" if item.names else "")


def _bars(title: str, values: dict[str, int]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    most = max(values.values(), default=0) or 1
    for name, value in values.items():
        table.add_row(escape(name), f"{value:,}", "█" * max(int(value > 0), round(_BAR * value / most)))
    if values:
        table.columns[1].justify = "right"
    return table
