"""Makes label maps, as Detectron2's catalog expects them, of what ADE20K and COCO hand out."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pvt_det.data.images import check_size, read_header, read_image, read_labels
from pvt_det.data.segmentation.folders import panoptic_folder
from pvt_det.errors import ConfigError, DataError
from pvt_det.utils.paths import make_folder

ADE20K_CLASSES = 150
ADE20K_SPLITS = ("training", "validation")
IGNORE = 255


def prepare_ade20k(root: str | Path, workers: int = 1) -> dict[str, int]:
    """Convert the label maps of the scene parsing challenge: 1 … 150 become 0 … 149, and 0 ("other") 255.

    Args:
        root: The folder ADEChallengeData2016 with `images/{training,validation}/*.jpg` and
            `annotations/{training,validation}/*.png`; `annotations_detectron2/` is made beside them.
        workers: Processes.

    Returns:
        Number of label maps written for each split.

    Raises:
        ConfigError: A folder cannot be written in, or there are no processes.
        DataError: A folder, image or label map is missing, or a label map is not the challenge's.
    """
    root = Path(root)
    counts = {}
    for split in ADE20K_SPLITS:
        labels = _pngs(root / "annotations" / split)
        target = root / "annotations_detectron2" / split
        make_folder(target)
        convert = partial(_convert_ade20k, images=root / "images" / split, target=target)
        counts[split] = _for_each(convert, labels, workers)
    return counts


def _convert_ade20k(path: Path, images: Path, target: Path) -> None:
    labels = read_labels(path)
    check_size(path, (labels.shape[1], labels.shape[0]), read_header(images / f"{path.stem}.jpg"))
    if labels.max() > ADE20K_CLASSES:
        raise DataError(
            f"label map {path} holds the value {labels.max()}; the challenge's hold 0 to {ADE20K_CLASSES}. Is it from "
            "the full ADE20K data set? Expected ADEChallengeData2016"
        )
    # In 8 bits 0 - 1 is 255, the value to ignore.
    Image.fromarray(labels - np.uint8(1)).save(target / path.name)


def prepare_stuff(panoptic_json: str | Path, target: str | Path, workers: int = 1) -> int:
    """Write the label maps that Panoptic FPN's semantic head learns from: 0 all things, 1 … the stuff classes in order.

    Args:
        panoptic_json: Annotations in COCO's panoptic format, see `pvt_det.data.segmentation.folders.panoptic_folder`.
        target: Folder to write to; made where absent.
        workers: Processes.

    Returns:
        Number of label maps written.

    Raises:
        ConfigError: The folder cannot be written in, or there are no processes.
        DataError: The annotations cannot be read, or a PNG file is missing or broken.
    """
    panoptic_json, target = Path(panoptic_json), Path(target)
    try:
        content = json.loads(panoptic_json.read_text(encoding="utf-8"))
        stuff = [category["id"] for category in content["categories"] if not category["isthing"]]
        annotations = content["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{panoptic_json} cannot be read as COCO's panoptic format ({error!r})") from error
    source = panoptic_folder(panoptic_json)
    make_folder(target)
    number_of = {id_: number for number, id_ in enumerate(stuff, start=1)}
    return _for_each(partial(_write_stuff, source=source, target=target, number_of=number_of), annotations, workers)


def _write_stuff(annotation: dict[str, Any], source: Path, target: Path, number_of: dict[int, int]) -> None:
    colours = read_image(source / annotation["file_name"], "RGB").astype(np.uint32)
    segments = colours @ np.array([1, 256, 256**2], dtype=np.uint32)
    ids, places = np.unique(segments, return_inverse=True)
    labels = {info["id"]: number_of.get(info["category_id"], 0) for info in annotation["segments_info"]}
    table: npt.NDArray[np.uint8] = np.array([labels.get(int(id_), IGNORE) for id_ in ids], dtype=np.uint8)
    Image.fromarray(table[places].reshape(segments.shape)).save(target / annotation["file_name"])


def _pngs(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise DataError(f"{folder} holds no PNG file: expected the layout of ADEChallengeData2016.zip")
    return paths


def _for_each(convert: Callable[[Any], None], items: list[Any], workers: int) -> int:
    if workers < 1:
        raise ConfigError(f"{workers} processes: expected 1 or more.")
    if workers == 1:
        for item in items:
            convert(item)
    else:
        with ProcessPoolExecutor(workers) as pool:
            for _ in pool.map(convert, items, chunksize=32):
                pass
    return len(items)
