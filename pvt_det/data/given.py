"""Check the annotations that a user gives to `train` and `eval`, and name the command that converts other formats."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from pathlib import Path

from detectron2.config import CfgNode

from pvt_det.config.given_data import GivenData, Part, given_data
from pvt_det.data.formats import (
    YAML_SUFFIXES,
    are_swapped,
    describe_folder,
    find_annotations,
    is_image_list,
)
from pvt_det.data.storage.places import has_shards
from pvt_det.data.storage.references import is_url
from pvt_det.data.storage.remote import refuse_credentials
from pvt_det.errors import DataError
from pvt_det.utils.paths import file_fault, folder_fault

_INSPECT = ("pvt-det", "inspect")


def require_coco_files(cfg: CfgNode, *, training: bool, config_file: str | Path) -> None:
    """Check that DATASETS.TRAIN_JSON and VAL_JSON are files in COCO's format, before anything else is done.

    Args:
        cfg: A complete config.
        training: Whether TRAIN_JSON is used, too.
        config_file: The config file, whose classes an evaluation needs.

    Raises:
        ConfigError: A URL contains a password or a signature.
        DataError: The annotations are in another format, or were swapped with the images. The message gives the command
            that converts them.
    """
    parts: tuple[Part, ...] = ("TRAIN", "VAL")
    given = [(part, data) for part in parts for data in given_data(cfg, part)]
    for path in itertools.chain.from_iterable(dataclasses.astuple(data) for _, data in given):
        refuse_credentials(path)
    for part, data in given:
        if not data.json_file or (part == "TRAIN" and not training):
            continue
        options = [f"--{part.lower()}-{name}" for name in ("json", "images")]
        if is_url(data.json_file) or has_shards(data.json_file):
            continue
        if data.images and are_swapped(Path(data.json_file), Path(data.images)):
            raise DataError(
                f"DATASETS.{part}_JSON is {data.json_file}, a folder of images, and {part}_IMAGES is {data.images}: "
                f"they are swapped. Give {shlex.join([options[0], data.images, options[1], data.json_file])}"
            )
        if what := _other_format(Path(data.json_file)):
            raise DataError(
                f"DATASETS.{part}_JSON ({options[0]}) is {data.json_file}, {what}. Expected COCO JSON. "
                f"{_advice(cfg, training, config_file, part, data)}"
            )


def _other_format(source: Path) -> str:
    """Say what a source is if it is not a JSON file; "" if it is one, or does not exist."""
    if not file_fault(source):
        if source.suffix.lower() in YAML_SUFFIXES:
            return "a YAML file, as YOLO data sets have it"
        if is_image_list(source):
            return "a list of images"
        is_json = source.suffix.lower() not in (".xml", ".txt")
        return "" if is_json else f"annotations in the format of {find_annotations(source)[0]}"
    if folder_fault(source):
        return ""
    try:
        return f"a folder of annotations in the format of {find_annotations(source)[0]}"
    except DataError:
        return f"a folder, which contains {describe_folder(source)}"


def _advice(cfg: CfgNode, training: bool, config_file: str | Path, part: Part, given: GivenData) -> str:
    data = cfg.DATASETS
    if training and isinstance(data.TRAIN_JSON, str):
        val = [data.VAL_JSON, *_images(data.VAL_JSON, data.VAL_IMAGES)] if data.VAL_JSON else []
        config = _unused("mine.yaml")
        options = [word for pair in zip(("--val-json", "--val-images"), val, strict=False) for word in pair]
        words = [data.TRAIN_JSON, *_images(data.TRAIN_JSON, data.TRAIN_IMAGES), *options, "--write-config", config]
        after = f"pvt-det train --config-file {config}"
        return (
            f"Check and convert it, and write a config for it, with\n  {shlex.join([*_INSPECT, *words])}\nThen train "
            f"with\n  {after}\nor with your own config and the JSON files that the first command names."
        )
    words, file = [given.json_file, *_images(given.json_file, given.images)], _unused("converted.json")
    classes = ["--classes-of", str(config_file)] if data.CLASS_NAMES and not training else []
    return (
        f"Check and convert it with\n  {shlex.join([*_INSPECT, *words, *classes, '--write-json', file])}\n"
        f"Then give --{part.lower()}-json {file}{_validation_part(given.json_file, file)}"
    )


def _validation_part(source: str, file: str) -> str:
    """Name the second file that `inspect` writes for a folder with training and validation data."""
    if folder_fault(source):
        return ""
    return f", or {Path(file).with_stem(f'{Path(file).stem}_val')} if it writes that too: it has the validation data"


def _images(source: str, images: str) -> list[str]:
    """Return the image folder if `inspect` needs it: YOLO's YAML files name their own.

    A folder that does not exist is left out if the annotations are a folder, in or beside which `inspect` finds the
    images. It is the earlier place of a data set that has moved.
    """
    is_yaml = Path(source).suffix.lower() in YAML_SUFFIXES
    has_moved = not folder_fault(source) and bool(folder_fault(images))
    return [images] if images and not is_yaml and not has_moved else []


def _unused(name: str) -> str:
    """Return a file name that does not exist yet, because `inspect` does not replace files."""
    path, number = Path(name), 1
    while path.exists():
        number += 1
        path = Path(name).with_stem(f"{Path(name).stem}{number}")
    return str(path)
