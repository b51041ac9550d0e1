"""Split a data set into training and validation data so that copies of an image stay on one side.

Otherwise, the metrics would be too high, because the model would be evaluated on images that it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from pvt_det.data.coco.annotations import read_json
from pvt_det.data.coco.findings import Findings
from pvt_det.errors import DataError
from pvt_det.inspection.files import FileFacts, similar_images
from pvt_det.inspection.inspect import Advice, Inspection
from pvt_det.inspection.statistics import describe
from pvt_det.utils.files import write_atomically
from pvt_det.utils.text import counted

# Roboflow names the copies of an image, which it crops, rotates or recolors, IMAGE.rf.DIGEST.jpg.
_COPY = ".rf."


@dataclass(frozen=True)
class Split:
    """A data set in two parts.

    Attributes:
        train: The training part.
        val: The validation part.
        groups: Ids of the images of each group that was kept on one side, including groups of a single image.
    """

    train: Inspection
    val: Inspection
    groups: list[list[int]]

    def advice(self) -> list[Advice]:
        """Return advice with the classes that only one of the parts has."""
        found = []
        for text, first, second in (
            ("classes without objects in the validation part: they cannot be evaluated", self.train, self.val),
            ("classes without objects in the training part: they cannot be learned", self.val, self.train),
        ):
            pairs = zip(first.statistics.classes, second.statistics.classes, strict=True)
            names = [here.name for here, there in pairs if here.objects and not there.objects]
            if names:
                found.append(Advice(text, len(names), names=names))
        return found


def split_dataset(found: Inspection, fraction: float, seed: int) -> Split:
    """Choose the validation images of a data set.

    Images with identical files, images that look alike and Roboflow's copies of an image stay on one side. The parts
    have about the same share of each class. The choice depends on the seed and on the names and content of the images,
    but not on their order or ids.

    Args:
        found: Inspection of the data set, with perceptual hashes. Images that cannot be used are not chosen.
        fraction: Target share of validation images, between 0 and 1. Their number differs from the target by at most
            half of the largest group.
        seed: Seed of the choice.

    Returns:
        The two parts. Both refer to the annotation file of the whole data set until they are written.

    Raises:
        DataError: One of the parts would have no object.
    """
    names = {image["id"]: image["file_name"] for image in found.data.images}
    class_names = {category["id"]: category["name"] for category in found.data.categories}
    classes: dict[int, set[str]] = {}
    for annotation in found.data.annotations:
        if not annotation["iscrowd"]:
            classes.setdefault(annotation["image_id"], set()).add(class_names[annotation["category_id"]])
    groups = group_images(names, found.facts)
    val = choose_validation(groups, names, classes, fraction, seed)
    split = Split(_without(found, val), _without(found, names.keys() - val), groups)
    for part, name in ((split.train, "training"), (split.val, "validation")):
        if not len(part.statistics.boxes):
            raise DataError(
                f"--val-fraction {fraction:g} would leave no object for the {name} part of {found.source}, which has "
                f"{counted(len(names), 'image')} in {counted(len(groups), 'group')} of near duplicates, the largest "
                f"with {counted(max(map(len, groups)), 'image')}. Use another fraction, or add images."
            )
    return split


def group_images(names: Mapping[int, str], facts: Mapping[int, FileFacts]) -> list[list[int]]:
    """Group images that must stay on one side of a split. Groups of more than two images can be chains.

    Args:
        names: File names by image id.
        facts: Facts about the files by image id, with perceptual hashes. Files that cannot be read are missing.

    Returns:
        The image ids of each group. Every image is in one group.
    """
    by_key: dict[str, list[int]] = {}
    for image_id, name in names.items():
        file = PureWindowsPath(name).name  # also splits at "/"
        keys = [f"name {name}", *([f"copy {file.partition(_COPY)[0]}"] if _COPY in file else [])]
        keys += [f"digest {facts[image_id].digest}"] if image_id in facts else []
        for key in keys:
            by_key.setdefault(key, []).append(image_id)
    same = ((ids[0], other) for ids in by_key.values() for other in ids[1:])
    return _connected(names, [*same, *similar_images(facts)])


def choose_validation(
    groups: Iterable[Sequence[int]],
    names: Mapping[int, str],
    classes: Mapping[int, Collection[str]],
    fraction: float,
    seed: int,
) -> set[int]:
    """Choose groups of images for validation, stratified by the rarest class in each group.

    The groups with the rarest class come first, in an order that depends on the seed. One after another, a group is
    chosen if that brings the number of chosen images closer to the target for the groups so far. So the share is right
    for all images and, up to the size of a group, for those of each rarest class.

    Args:
        groups: Image ids of each group.
        names: File names by image id.
        classes: Class names of the objects in an image, by image id. Images without objects can be missing.
        fraction: Target share of the images to choose, between 0 and 1.
        seed: Seed of the order.

    Returns:
        Ids of the chosen images.
    """
    images_of = Counter(name for of_image in classes.values() for name in of_image)

    def order(group: Sequence[int]) -> tuple[tuple[float, str], str]:
        rarest = min(((images_of[c], c) for image in group for c in classes.get(image, ())), default=(math.inf, ""))
        first = min(names[image] for image in group)
        return rarest, hashlib.sha256(f"{seed} {first}".encode(errors="surrogatepass")).hexdigest()

    chosen: set[int] = set()
    seen = 0
    for group in sorted(groups, key=order):
        seen += len(group)
        if len(chosen) + len(group) / 2 < fraction * seen:
            chosen.update(group)
    return chosen


def write_split(split: Split, train_file: Path, val_file: Path) -> Split:
    """Write the annotations of both parts as COCO JSON.

    Ids, categories, `info`, `licenses` and all other keys are those of the whole data set. Images and annotations that
    cannot be used are written to the training part, so that nothing is lost.

    Args:
        split: The split.
        train_file: File for the training part. Its folder must exist.
        val_file: File for the validation part. Its folder must exist.

    Returns:
        The split with the new annotation files.
    """
    content = read_json(split.train.json_file)
    chosen = {image["id"] for image in split.val.data.images}
    for file, is_val in ((train_file, False), (val_file, True)):
        part = {
            "images": [each for each in content["images"] if _is_of(each, "id", chosen) == is_val],
            "annotations": [each for each in content["annotations"] if _is_of(each, "image_id", chosen) == is_val],
        }
        write_atomically(file, json.dumps(content | part))
    train, val = replace(split.train, json_file=train_file), replace(split.val, json_file=val_file)
    return replace(split, train=train, val=val)


def _is_of(entry: object, key: str, image_ids: Collection[int]) -> bool:
    """Return whether an entry of an annotation file, which may be invalid, belongs to one of the images."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return isinstance(value, int) and value in image_ids


def _without(found: Inspection, image_ids: Collection[int]) -> Inspection:
    """Return the usable part of an inspected data set without some images."""
    data = found.data.without(image_ids)
    kept = {image["id"] for image in data.images}
    return replace(
        found,
        data=data,
        findings=Findings(),
        statistics=describe(data),
        advice=[],
        images={image_id: image for image_id, image in found.images.items() if image_id in kept},
        facts={image_id: fact for image_id, fact in found.facts.items() if image_id in kept},
    )


def _connected(items: Iterable[int], pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of a graph with these nodes and edges."""
    parent = {item: item for item in items}

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]  # shortens the path for later searches
        return item

    for first, second in pairs:
        parent[root(second)] = root(first)
    components: dict[int, list[int]] = {}
    for item in parent:
        components.setdefault(root(item), []).append(item)
    return list(components.values())
