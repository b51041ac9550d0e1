"""Write an inspection of label maps as one HTML page, with each sample image beside its painted label map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pvt_det.data.images import read_image, read_labels
from pvt_det.errors import DataError
from pvt_det.inspection.inspect import Advice
from pvt_det.inspection.page import overlap, size_bars
from pvt_det.inspection.semantic.inspection import LabelInspection
from pvt_det.inspection.semantic.scan import LabelFile, conversion
from pvt_det.inspection.semantic.terminal import summary
from pvt_det.inspection.terminal import advice_line
from pvt_det.utils import html
from pvt_det.utils.colors import class_colors
from pvt_det.utils.label_pictures import VOID_NAME, legend_entries, paint, shrink
from pvt_det.utils.numbers import Number

_WIDTH = 480
_SAMPLES = 12
_OFFENDERS = 6
# Longer tables are collapsed.
_SHOWN_CLASSES = 40


def label_page(
    title: str, parts: Sequence[tuple[str, LabelInspection]], leakage: Sequence[Advice], on_error: str
) -> str:
    """Return the HTML page of one or two inspected data sets.

    Args:
        title: Title of the page.
        parts: Name and inspection of each data set, the training data first.
        leakage: Advice from `find_label_leakage` about the last data set of `parts`.
        on_error: Value of DATASETS.ON_ERROR, which decides whether problems are dropped or refused.
    """
    sections = [section for name, found in parts for section in _sections(name, found, on_error)]
    if len(parts) > 1:
        sections.append(overlap([html.notice(advice_line(item), "warning") for item in leakage]))
    return html.page(title, sections)


def _sections(name: str, found: LabelInspection, on_error: str) -> Iterator[tuple[str, html.Html]]:
    folders = [("Folder of label maps", str(found.label_root)), ("Folder of images", str(found.image_root))]
    rows = [*folders, *summary(found)]
    yield name, html.join(html.table(rows[0], rows[1:]), *_problems(found, on_error), *_advice(found))
    if not found.files:
        return
    yield f"{name}: classes", _classes(found)
    yield f"{name}: sizes", size_bars(found.sizes)
    yield f"{name}: samples", _pictures(found, _samples(found))


def _problems(found: LabelInspection, on_error: str) -> Iterator[html.Html]:
    findings = found.scan.findings
    if not findings.problems:
        yield html.notice("No problems were found in the label maps and images.", "good")
    for line, (_, problem) in zip(findings.lines(on_error), findings.ordered(on_error), strict=True):
        yield html.notice(line, "bad" if problem.outcome(on_error) == "refused" else "warning")
        if len(problem.first) > 1:
            yield html.details(f"First {len(problem.first)} of {problem.count}", html.code("\n".join(problem.first)))
    if found.scan.colors:
        yield html.paragraph("Training needs one channel with class numbers. This script converts the colors:")
        yield html.code(conversion(found.scan.colors))


def _advice(found: LabelInspection) -> Iterator[html.Html]:
    by_name = {each.image.name: each for each in found.files}
    for item in found.advice:
        yield html.notice(advice_line(item), "warning")
        chosen = [by_name[name] for name in item.names if name in by_name][:_OFFENDERS]
        if chosen:
            yield html.details(f"Examples, {len(chosen)} of {item.count}", _pictures(found, chosen))


def _classes(found: LabelInspection) -> html.Html:
    palette, colors = found.scan.palette, class_colors()
    has_palette = palette is not None
    rows = []
    for each in sorted((each for each in found.classes if each.images), key=lambda each: -each.share):
        name = html.Html(f"{html.swatch(colors[each.value])}{html.escape(each.name)}")
        stored = [_stored_color(palette, each.value)] if has_palette else []
        rows.append([each.value, name, Number(100 * each.share), each.images, *stored])
    void = found.scheme.ignore_value
    name = html.Html(f"{html.swatch(None)}{html.escape(VOID_NAME)}")
    stored = [_stored_color(palette, void)] if has_palette else []
    rows.append([void, name, Number(100 * found.void_share), int(found.scan.images[void]), *stored])
    header = ["value", "class", "percent of the pixels", "images", *(["color in the palette"] if has_palette else [])]
    shown = html.table(header, rows)
    lead = html.paragraph("Shares of the labeled pixels; for void, of all pixels.")
    return html.join(lead, html.details(f"{len(rows) - 1} classes", shown) if len(rows) > _SHOWN_CLASSES else shown)


def _stored_color(palette: np.ndarray | None, value: int) -> html.Html:
    if palette is None or value >= len(palette):
        return html.Html("")
    color = palette[value].tolist()
    return html.Html(f"{html.swatch(color)}#{bytes(color).hex()}")


def _samples(found: LabelInspection) -> list[LabelFile]:
    """Choose images that together show as many classes as possible, the rarest first, then others evenly."""
    files, chosen = found.files, dict[Path, LabelFile]()
    seen = np.zeros(256, bool)
    for each in sorted(found.classes, key=lambda each: each.images):
        if len(chosen) < _SAMPLES and each.images and not seen[each.value]:
            best = max(files, key=lambda file: int(file.pixels[each.value]))
            chosen[best.image] = best
            seen |= best.pixels > 0
    for index in np.linspace(0, len(files) - 1, min(_SAMPLES, len(files))).round().astype(int).tolist():
        if len(chosen) < _SAMPLES:
            chosen[files[index].image] = files[index]
    return list(chosen.values())


def _pictures(found: LabelInspection, chosen: Sequence[LabelFile]) -> html.Html:
    """Draw images beside their label maps, below a legend."""
    scheme, drawn, maps = found.scheme, list[html.Html](), list[np.ndarray]()
    for each in chosen:
        try:
            image, labels = read_image(each.image, "RGB"), read_labels(each.label)
        except DataError:
            continue  # the findings report why
        image, (labels,) = shrink(image, (labels,), _WIDTH)
        drawn.append(html.pair(image, paint(image, labels, scheme.ignore_value), each.image.name))
        maps.append(labels)
    key = html.legend(legend_entries(maps, scheme.class_names, scheme.ignore_value))
    return html.join(key, html.drawings(drawn))
