"""The tables of a prediction folder: `images.json`, and `detections.json` or `panoptic.json`.

They are written from records: one dict for each image or frame, with `file_name`, `name`, `height`, `width`,
`detections` (or segments) and, for a frame of a video, `frame` and `time`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pvt_det.errors import DataError
from pvt_det.run_folder import DETECTIONS_NAME, IMAGES_NAME, PANOPTIC_NAME, PREDICTION
from pvt_det.utils.files import write_json_list, write_json_lists

Record: TypeAlias = dict[str, Any]


def write_images(folder: Path, records: Iterable[Record], categories: Sequence[Record]) -> None:
    """Write `images.json`: the images, numbered from 1, and the classes, in COCO's annotation format.

    Args:
        folder: The prediction folder.
        records: The images.
        categories: COCO's `categories`.

    Raises:
        OSError: The file cannot be written.
    """
    lists = {"images": _images(records)}
    write_json_lists(
        folder / IMAGES_NAME, lists, info={"kind": PREDICTION}, annotations=[], categories=list(categories)
    )


def write_detections(folder: Path, records: Iterable[Record]) -> None:
    """Write `detections.json`: the detections in COCO's results format.

    Args:
        folder: The prediction folder.
        records: The images.

    Raises:
        OSError: The file cannot be written.
    """
    numbered = enumerate(records, start=1)
    results = ({"image_id": number, **each} for number, record in numbered for each in record["detections"])
    write_json_list(folder / DETECTIONS_NAME, results)


def write_panoptic(folder: Path, records: Callable[[], Iterable[Record]], categories: Sequence[Record]) -> None:
    """Write `panoptic.json`: the images and their segments in COCO's panoptic format.

    Args:
        folder: The prediction folder.
        records: Returns the images, from the first one each time.
        categories: COCO's `categories`.

    Raises:
        OSError: The file cannot be written.
    """
    annotations = (
        {"image_id": number, "file_name": f"{record['name']}.png", "segments_info": record["detections"]}
        for number, record in enumerate(records(), start=1)
    )
    lists = {"images": _images(records()), "annotations": annotations}
    write_json_lists(folder / PANOPTIC_NAME, lists, categories=list(categories))


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records that the tables of a folder were written from.

    Args:
        folder: The prediction folder.

    Raises:
        DataError: A table cannot be read.
    """
    found: dict[int, list[Record]] = {}
    if (folder / DETECTIONS_NAME).exists():
        for result in read_table(folder / DETECTIONS_NAME):
            found.setdefault(result.pop("image_id"), []).append(result)
    elif (folder / PANOPTIC_NAME).exists():
        for annotation in read_table(folder / PANOPTIC_NAME)["annotations"]:
            found[annotation["image_id"]] = annotation["segments_info"]
    for image in read_table(folder / IMAGES_NAME)["images"]:
        number = image.pop("id")
        yield {**image, "detections": found.get(number, [])}


def read_table(file: Path) -> Any:
    """Read a JSON file.

    Args:
        file: The file.

    Raises:
        DataError: It cannot be read, or is not valid JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}).") from error


def _images(records: Iterable[Record]) -> Iterator[Record]:
    for number, record in enumerate(records, start=1):
        yield {"id": number, **{key: value for key, value in record.items() if key != "detections"}}
