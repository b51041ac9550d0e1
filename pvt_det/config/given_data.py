"""The data sets that a config gives by paths, without registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from detectron2.config import CfgNode

from pvt_det.errors import ConfigError
from pvt_det.utils.text import counted

Part = Literal["TRAIN", "VAL"]


@dataclass(frozen=True)
class GivenData:
    """The paths of a data set.

    Attributes:
        json_file: COCO-format annotation file, or "".
        labels: Folder of label maps, or "".
        images: Folder of the images, or "" if it is missing.
    """

    json_file: str
    labels: str
    images: str


def given_data(cfg: CfgNode, part: Part) -> list[GivenData]:
    """Return the data sets of `DATASETS.<part>_JSON`, `<part>_LABELS` and `<part>_IMAGES`.

    Args:
        cfg: A complete config.
        part: "TRAIN" or "VAL".

    Returns:
        The data sets, none if neither annotation files nor label maps are given.

    Raises:
        ConfigError: The keys have different numbers of paths, or a data set is given twice.
    """
    data = cfg.DATASETS
    json_files, labels, images = (listed_paths(data[f"{part}_{kind}"]) for kind in ("JSON", "LABELS", "IMAGES"))
    images = images or [""]
    number = max(len(json_files), len(labels))
    if not number:
        return []
    if json_files and labels and len(json_files) != len(labels):
        raise ConfigError(
            f"DATASETS.{part}_JSON has {counted(len(json_files), 'path')}, but {part}_LABELS has {len(labels)}. "
            "Expected an annotation file and a folder of label maps for each data set."
        )
    if len(images) not in (1, number):
        raise ConfigError(
            f"DATASETS.{part}_IMAGES has {counted(len(images), 'path')}, but "
            f"{part}_{'JSON' if json_files else 'LABELS'} has {number}. Give the folder of images of each data set, in "
            "the same order, or one folder that has the images of all."
        )
    columns = (json_files or [""] * number, labels or [""] * number, images * number if len(images) == 1 else images)
    sets = [GivenData(*paths) for paths in zip(*columns, strict=True)]
    if repeated := next((each for each in sets if sets.count(each) > 1), None):
        kind, path = ("JSON", repeated.json_file) if repeated.json_file else ("LABELS", repeated.labels)
        raise ConfigError(
            f"DATASETS.{part}_{kind} names {path} twice. Leave it out once. To draw its images more often, set "
            f"DATASETS.{part}_WEIGHTS."
        )
    return sets


def listed_paths(paths: str | list[str] | tuple[str, ...]) -> list[str]:
    """Return the paths of a key that is a path or a list of paths, without empty ones.

    Args:
        paths: Value of the key.
    """
    return [path for path in ([paths] if isinstance(paths, str) else paths) if path]
