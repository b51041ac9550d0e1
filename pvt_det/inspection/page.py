"""Write an inspection as one HTML page, with visualizations of sample images and of images with problems."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from pvt_det.data.coco.annotations import entry_name
from pvt_det.data.images import read_image
from pvt_det.errors import DataError
from pvt_det.inspection.inspect import Advice, Inspection
from pvt_det.inspection.terminal import advice_line, by_frequency, summary
from pvt_det.utils import html
from pvt_det.utils.visualizer import MAX_SHOWN, caption_of, draw

_WIDTH = 400
_SAMPLES = 12
_OFFENDERS = 8
_MOST_BARS, _MOST_SIZES = 30, 10


def inspection_page(
    title: str, parts: Sequence[tuple[str, Inspection]], leakage: Sequence[Advice], on_error: str
) -> str:
    """Return the HTML page of one or two inspected data sets.

    Args:
        title: Title of the page.
        parts: Name and inspection of each data set, the training data first.
        leakage: Advice from `find_leakage` about the last data set of `parts`.
        on_error: Value of DATASETS.ON_ERROR, which decides whether problems are fixed, dropped or refused.
    """
    sections = [section for name, found in parts for section in _sections(name, found, on_error)]
    if len(parts) > 1:
        sections.append(overlap([_advice(item, parts[-1][1]) for item in leakage]))
    return html.page(title, sections)


def overlap(advice: Sequence[html.Html]) -> tuple[str, html.Html]:
    """Return the section about images and classes that only one or both of the data sets have.

    Args:
        advice: The advice about them.
    """
    none = html.notice("No image is in both data sets.", "good")
    return "Overlap of the data sets", html.join(*(advice or [none]))


def size_bars(sizes: Sequence[tuple[tuple[int, int], int]]) -> html.Html:
    """Return bars with the number of images of each of the most frequent sizes.

    Args:
        sizes: Pairs of image size (width, height) and number of images, the most frequent size first.
    """
    more = len(sizes) - _MOST_SIZES
    return html.join(
        html.paragraph("Images by width and height, in pixels:"),
        html.bars({f"{w} x {h}": count for (w, h), count in sizes[:_MOST_SIZES]}),
        html.paragraph(f"… and {more} other sizes") if more > 0 else html.Html(""),
    )


def _sections(name: str, found: Inspection, on_error: str) -> Iterator[tuple[str, html.Html]]:
    first, *rest = summary(found)
    numbers = html.join(html.paragraph(found.source), html.table(first, rest))
    yield name, html.join(numbers, *_problems(found, on_error), *(_advice(item, found) for item in found.advice))
    s = found.statistics
    counted = by_frequency(s)
    yield (
        f"{name}: classes",
        html.join(
            html.bars({c.name: c.objects for c in counted[:_MOST_BARS] if c.objects}),
            html.details(
                "Objects and images per class",
                html.table(["class", "objects", "images"], [(c.name, c.objects, c.images) for c in counted]),
            ),
        ),
    )
    yield (
        f"{name}: sizes",
        html.join(
            html.paragraph("Objects by the square root of their box area, in pixels:"),
            html.bars(s.box_histogram()),
            size_bars(s.image_sizes),
        ),
    )
    yield f"{name}: samples", html.gallery(_samples(found))


def _problems(found: Inspection, on_error: str) -> Iterator[html.Html]:
    if not found.findings.problems:
        yield html.notice("No problems were found in the annotations and images.", "good")
    for line, (kind, problem) in zip(found.findings.lines(on_error), found.findings.ordered(on_error), strict=True):
        level = {"refused": "bad", "dropped": "warning", "fixed": "good"}[problem.outcome(on_error)]
        yield html.notice(line, level)
        pictures = list(_offenders(found, problem.first))
        if pictures:
            yield html.details(f"Examples, {len(pictures)} of {problem.count}: {kind}", html.gallery(pictures))


def _offenders(found: Inspection, names: Sequence[str]) -> Iterator[html.Html]:
    """Draw the objects that the findings name, such as "annotation 7", "a.xml, line 9" or "image 3: reason"."""
    by_name: dict[str, tuple[Any, list[dict[str, Any]] | None]] = {}
    by_name |= {entry_name("annotation", a, 0): (a.get("image_id"), [a]) for a in found.all_annotations.values()}
    by_name |= {entry_name("image", image, 0): (number, None) for number, image in found.images.items()}
    shown = [(name, *by_name[key]) for name in dict.fromkeys(names) if (key := name.split(": ")[0]) in by_name]
    yield from _pictures(found, shown[:_OFFENDERS])


def _advice(item: Advice, found: Inspection) -> html.Html:
    chosen: list[tuple[str, Any, list[dict[str, Any]] | None]]
    if item.annotations:
        triples = zip(item.names, item.images, item.annotations, strict=True)
        chosen = [(name, image, [found.all_annotations[number]]) for name, image, number in triples]
    else:
        chosen = [(name, image, None) for name, image in zip(item.names, item.images, strict=False)]
    pictures = list(_pictures(found, chosen[:_OFFENDERS]))
    line = html.notice(advice_line(item), "warning")
    return (
        html.join(line, html.details(f"Examples, {len(pictures)} of {item.count}", html.gallery(pictures)))
        if pictures
        else line
    )


def _samples(found: Inspection) -> Iterator[html.Html]:
    images = found.data.images
    indices = np.linspace(0, len(images) - 1, min(_SAMPLES, len(images))).round().astype(int)
    return _pictures(found, [(images[index]["file_name"], images[index]["id"], None) for index in indices])


def _pictures(found: Inspection, chosen: Iterable[tuple[str, Any, list[dict[str, Any]] | None]]) -> Iterator[html.Html]:
    """Draw images, each given by caption, image id and annotations; None draws all valid annotations."""
    for caption, image_id, own in chosen:
        image = found.images.get(image_id)
        if image is None:
            continue
        try:
            pixels = read_image(found.image_root / image["file_name"], "RGB")
        except DataError:
            continue  # the findings report why
        shown = [a for a in found.data.annotations if a["image_id"] == image_id] if own is None else own
        # The name of a single class is not informative and would cover small objects.
        names = list(found.data.class_names) if len(found.data.class_names) > 1 else [""]
        objects = _objects(shown[:MAX_SHOWN], found)
        if any(each["category_id"] == len(names) for each in objects):
            names.append("unknown class")
        picture = draw(pixels, objects, names, _WIDTH)
        yield html.picture(picture, caption_of(caption, len(shown)))


def _objects(annotations: Iterable[dict[str, Any]], found: Inspection) -> list[dict[str, Any]]:
    numbers = {category["id"]: number for number, category in enumerate(found.data.categories)}
    valid = {annotation["id"] for annotation in found.data.annotations}
    return [
        {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": numbers.get(annotation.get("category_id"), len(numbers)),
            "segmentation": annotation.get("segmentation") if annotation.get("id") in valid else None,
        }
        for annotation in annotations
        if _can_be_drawn(annotation.get("bbox"))
    ]


def _can_be_drawn(box: Any) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    return numbers and all(math.isfinite(value) and abs(value) < 1e5 for value in box)
