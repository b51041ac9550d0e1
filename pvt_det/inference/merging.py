"""Check the parts of a divided prediction, and merge them into the tables that one process would have written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvt_det.errors import DataError
from pvt_det.inference.parts import PART_NAME, Plan, read_plan
from pvt_det.inference.tables import Record, read_records, read_table, write_detections, write_images, write_panoptic
from pvt_det.run_folder import DETECTIONS_NAME, IMAGES_NAME, PANOPTIC_NAME
from pvt_det.utils.claims import Claims, Holder
from pvt_det.utils.digest import file_digest
from pvt_det.utils.text import listed

_SHOWN = 20  # parts of one kind that a message names


@dataclass
class Merged:
    """A prediction that was merged.

    Attributes:
        tables: The files that were written.
        images: Number of images and frames in them.
        objects: Number of detections or segments.
        files: Number of images and videos that were given.
        errors: What could not be read.
    """

    tables: list[Path]
    images: int
    objects: int
    files: int
    errors: list[str]


def merge_parts(output: Path) -> Merged:
    """Merge the parts of a prediction, if all are finished and fit together.

    The files equal those of an undivided prediction byte for byte. The parts stay.

    Args:
        output: The output folder of the prediction.

    Raises:
        DataError: Parts are missing, damaged, or were made with something else than the plan says. Nothing is written.
        OSError: A file cannot be written.
    """
    plan = read_plan(output)
    claims = Claims(plan.folder)
    folders = {number: plan.folder / plan.name(number) for number in range(1, plan.count + 1)}
    found = {number: folder for number, folder in folders.items() if claims.is_finished(folder.name)}
    missing = [number for number in folders if number not in found]
    faults = [f"{folder}: {fault}" for number, folder in found.items() if (fault := _fault(plan, number, folder))]
    faults += [f"{path}: not one of the {plan.count} parts" for path in _others(plan)]
    problems = listed(faults, _SHOWN, separator="; ")
    if missing:
        names = listed([_with_holder(claims, plan, number) for number in missing], _SHOWN)
        problems = "; ".join(filter(None, [f"{len(missing)} of {plan.count} parts are missing: {names}", problems]))
    if problems:
        raise DataError(
            f"{output} cannot be merged. {problems}. Delete the folders of parts that do not fit, and run pvt-det "
            f"predict with --parts {plan.count} for what is missing."
        )
    return _write(plan, list(found.values()))


def _write(plan: Plan, folders: list[Path]) -> Merged:
    images = objects = 0

    def records() -> Iterator[Record]:
        nonlocal images, objects
        images = objects = 0
        for folder in folders:
            for record in read_records(folder):
                images, objects = images + 1, objects + len(record["detections"])
                yield record

    written = []
    if (folders[0] / DETECTIONS_NAME).exists():
        write_detections(plan.output, records())
        written.append(plan.output / DETECTIONS_NAME)
    elif (folders[0] / PANOPTIC_NAME).exists():
        write_panoptic(plan.output, records, read_table(folders[0] / PANOPTIC_NAME)["categories"])
        written.append(plan.output / PANOPTIC_NAME)
    write_images(plan.output, records(), read_table(folders[0] / IMAGES_NAME)["categories"])
    errors = [error for folder in folders for error in read_table(folder / PART_NAME)["errors"]]
    files = sum(map(len, plan.parts))
    return Merged([*written, plan.output / IMAGES_NAME], images, objects, files, errors)


def _fault(plan: Plan, number: int, folder: Path) -> str:
    """Say why a finished part cannot be merged; "" if it can."""
    try:
        manifest = read_table(folder / PART_NAME)
        if manifest["part"] != number:
            return f"contains part {manifest['part']}"
        if changed := _changed(manifest["settings"], plan.settings):
            return f"was made with a different {' and '.join(changed)}"
        if manifest["plan_sha256"] != plan.digest:
            return f"was made with another {plan.file.name}: other images or another number of parts"
        for name, digest in manifest["files"].items():
            if file_digest(folder / Path(name).name) != digest:
                return f"{name} was changed since it was written"
        images = dict.fromkeys(image["file_name"] for image in read_table(folder / IMAGES_NAME)["images"])
        unreadable = set(manifest["unreadable"])
        if list(images) != [name for name in plan.parts[number - 1] if name not in unreadable]:
            return f"{IMAGES_NAME} does not have the images of part {number}"
    except (DataError, OSError) as error:
        return str(error).rstrip(".")
    except (KeyError, TypeError, AttributeError, ValueError):
        return f"{PART_NAME} is not complete"
    return ""


def _changed(made: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    return [name for name in sorted(made.keys() | asked.keys()) if made.get(name) != asked.get(name)]


def _others(plan: Plan) -> list[Path]:
    """Return the folders that look like parts, such as copies and those of another division."""
    names = {plan.name(number) for number in range(1, plan.count + 1)}
    return sorted(file.parent for file in plan.folder.glob(f"*/{PART_NAME}") if not _is_known(file.parent.name, names))


def _is_known(name: str, names: set[str]) -> bool:
    return name in names or name.partition(".")[0] in names  # an unfinished attempt


def _with_holder(claims: Claims, plan: Plan, number: int) -> str:
    holder: Holder | None = claims.holder(plan.name(number))
    return f"{number} ({holder} is working on it)" if holder else str(number)
