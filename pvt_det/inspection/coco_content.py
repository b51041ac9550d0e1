"""Put converted annotations into the form of a COCO JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def coco_content(
    images: Sequence[dict[str, Any]], objects: Iterable[dict[str, Any]], class_names: Iterable[str]
) -> dict[str, Any]:
    """Number objects and classes from 1, and return the content of a COCO JSON file.

    Args:
        images: The images, with their ids.
        objects: The objects in COCO's format, with the `name` of their class instead of an id and a `category_id`.
        class_names: The class names, without duplicates.
    """
    numbers = {name: number for number, name in enumerate(class_names, start=1)}
    annotations = [
        {"id": number, "category_id": numbers[found.pop("name")], **found}
        for number, found in enumerate(objects, start=1)
    ]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": list(images), "annotations": annotations, "categories": categories}
