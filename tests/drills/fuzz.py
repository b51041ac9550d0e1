"""Mutated files are refused with a reason or read without silent changes."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import pickle
import random
import resource
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import mask as mask_util
from PIL import Image

from pvt_det.config.table import choices
from pvt_det.data.coco.annotations import read_annotations
from pvt_det.data.coco.findings import Findings
from pvt_det.data.images import read_header, read_image
from pvt_det.errors import CheckpointError, DataError
from pvt_det.evaluation.ground_truth import GroundTruth
from pvt_det.weights import save_checkpoint, save_safetensors
from pvt_det.weights.reader import read_tensors
from tests.drills.outcome import Outcome

KINDS = ("json", "image", "checkpoint")
_MAX_ADDED_MEMORY = 2**30
_BATCH = 200
_SIDE = 64

# Result of a mutation: "refused", "read", "read, other pixels", or the reason of a failure.
_Verdict = str


def run_fuzz(folder: Path, count: int, *, seed: int = 0, kinds: tuple[str, ...] = KINDS) -> Outcome:
    """Read mutated files in child processes, and monitor their memory.

    Args:
        folder: Folder for the files.
        count: Number of mutations of each kind.
        seed: Seed of the mutations. Mutation n of a seed is always the same.
        kinds: Kinds of files, a subset of `KINDS`.
    """
    outcome = Outcome("fuzz")
    context = multiprocessing.get_context("fork")
    peak = 0
    for kind in kinds:
        verdicts: Counter[str] = Counter()
        for first in range(0, count, _BATCH):
            numbers = range(first, min(first + _BATCH, count))
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_read_many, args=(sender, folder, kind, seed, numbers))
            child.start()
            sender.close()
            read, last = _receive(receiver, verdicts, outcome.failures)
            peak = max(peak, last)
            child.join()
            if child.exitcode:
                outcome.failures.append(f"{kind} {numbers[min(read, len(numbers) - 1)]}: exit code {child.exitcode}")
            outcome.tried += len(numbers)
        outcome.facts[kind] = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    outcome.facts["memory that a process added"] = f"{peak / 2**20:.0f} MiB"
    if peak > _MAX_ADDED_MEMORY:
        outcome.failures.append(f"a process added more than {_MAX_ADDED_MEMORY / 2**30:.0f} GiB")
    return outcome


def _receive(receiver: Connection, verdicts: Counter[str], failures: list[str]) -> tuple[int, int]:
    """Collect the verdicts of a child process, and return their number and the memory it added, in bytes."""
    read, peak = 0, 0
    while True:
        try:
            name, verdict, peak = receiver.recv()
        except EOFError:
            return read, peak
        read += 1
        verdicts[verdict if verdict in ("refused", "read", "read, other pixels") else "failed"] += 1
        if verdict not in ("refused", "read", "read, other pixels"):
            failures.append(f"{name}: {verdict}")


def _read_many(sender: Connection, folder: Path, kind: str, seed: int, numbers: range) -> None:
    torch.set_num_threads(1)
    # A forked process starts with the memory of its parent, which is large late in a test run.
    before = _peak_memory()
    read: Callable[[Path, random.Random], _Verdict] = {
        "json": _read_json,
        "image": _read_image,
        "checkpoint": _read_checkpoint,
    }[kind]
    for number in numbers:
        try:
            verdict = read(folder, random.Random(f"{seed} {kind} {number}"))
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"[:300]
        sender.send((f"{kind} {number}", verdict, _peak_memory() - before))


def _peak_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- annotation files ------------------------------------------------------------------------------------------------
_NUMBERS = [True, -1, 0, 1, 2, 0.5, 1e8, 9e7, 1e300, -1e30, math.nan, math.inf, 2**31, 2**53 + 1, 10**400]
_OTHERS: list[Any] = [None, "", "x", "\0", "../x.jpg", "P" * 1000, [], {}, [[]], [1, 2, 3, 4], [1, -2, 3], [[4096]]]
_VALUES = [*_NUMBERS, *_OTHERS, {"size": [1, 1], "counts": "0"}]


def _content() -> dict[str, Any]:
    polygon = [8.0, 8.0, 32.0, 8.0, 32.0, 24.0, 8.0, 24.0]
    rle = {"size": [_SIDE, _SIDE], "counts": [100, 200, _SIDE * _SIDE - 300]}
    pixels = np.asfortranarray(np.eye(_SIDE, dtype=np.uint8))
    packed = {"size": [_SIDE, _SIDE], "counts": mask_util.encode(pixels)["counts"].decode()}
    masks = [[polygon], rle, [polygon, polygon], packed]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": _SIDE, "height": _SIDE, "license": 1, "date_captured": "today"}
            for i in range(1, 5)
        ],
        "categories": [{"id": 3, "name": "bowl", "supercategory": "dish"}, {"id": 9, "name": "cup"}],
        "annotations": [
            {"id": 9 + i, "image_id": i, "category_id": 3, "bbox": [8.0, 8.0, 24.0, 16.0], "area": 384, "iscrowd": 0}
            | {"segmentation": masks[i - 1]}
            for i in range(1, 5)
        ],
    }


def _read_json(folder: Path, generator: random.Random) -> _Verdict:
    content = _content()
    for _ in range(generator.choice([1, 1, 2, 5])):
        _change_value(content, generator)
    encoded = json.dumps(content).encode()
    if generator.random() < 0.4:
        encoded = _change_bytes(encoded, generator)
    path = folder / "mutated.json"
    path.write_bytes(encoded)
    verdict = "refused"
    for on_error in choices("DATASETS.ON_ERROR"):
        findings = Findings()
        try:
            data = read_annotations(path, findings)
            findings.raise_if_refused(str(path), on_error)
        except DataError:
            continue
        verdict = "read"
        change = _silent_changes(json.loads(encoded), data.images, data.annotations, findings, on_error)
        if change:
            return f"{on_error}: {change}"
        # The evaluator must accept what the reader accepted.
        GroundTruth(data.images, data.annotations, data.categories).with_masks().hotcoco(masks=True)
    return verdict


def _change_value(content: dict[str, Any], generator: random.Random) -> None:
    """Replace, remove, duplicate or nudge a random value."""
    node: Any = content
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not places:
            return
        place = generator.choice(places)
        inner = node[place]
        if not isinstance(inner, (dict, list)) or not inner or generator.random() < 0.15:
            break
        node = inner
    change = generator.choice(["replace", "replace", "remove", "double", "nudge"])
    if change == "remove":
        del node[place]
    elif change == "double" and isinstance(node, list):
        node.append(inner)
    elif change == "nudge" and isinstance(inner, (int, float)) and abs(inner) < 2**60:
        node[place] = inner + generator.choice([-1, 1, 0.0, 0.5, 1e4, 1e7])
    else:
        node[place] = copy.deepcopy(generator.choice(_VALUES))


def _silent_changes(
    raw: dict[str, Any], images: list[Any], annotations: list[Any], findings: Findings, on_error: str
) -> str:
    """Return the first unreported difference between a file and the data read from it, or ""."""
    problems = findings.problems.items()
    dropped = sum(problem.count for _, problem in problems if problem.outcome(on_error) == "dropped")
    reported = {key for kind, p in problems if p.repair for key in ("area", "iscrowd", "polygon") if key in kind}
    missing = len(raw["images"]) + len(raw["annotations"]) - len(images) - len(annotations)
    if missing != dropped:
        return f"{missing} images and annotations are missing, but {dropped} are reported"
    originals = {a["id"]: a for a in raw["annotations"] if isinstance(a, dict) and type(a.get("id")) is int}
    files = {i["id"]: i for i in raw["images"] if isinstance(i, dict) and type(i.get("id")) is int}
    if any(repr(files[image["id"]]) != repr(image) for image in images):
        return "an image's record differs"
    for annotation in annotations:
        original = originals[annotation["id"]]
        for key in ("image_id", "category_id", "bbox"):
            if repr(original[key]) != repr(annotation[key]):
                return f"{key} differs"
        for key in ("area", "iscrowd"):
            if key not in reported and original[key] != annotation[key]:
                return f"{key} differs"
        segmentation = original.get("segmentation")
        if "polygon" not in reported and segmentation and repr(segmentation) != repr(annotation.get("segmentation")):
            return "segmentation differs"
    return ""


# --- images ----------------------------------------------------------------------------------------------------------
@cache
def _images() -> list[tuple[bytes, np.ndarray]]:
    """Return image files of many formats with their pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (_SIDE, _SIDE + 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 6
    kinds: list[tuple[Image.Image, dict[str, Any]]] = [
        (image, {"format": "JPEG"}),
        (image, {"format": "JPEG", "progressive": True, "exif": exif}),
        (image.convert("CMYK"), {"format": "JPEG"}),
        (image, {"format": "PNG"}),
        (Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 256), {"format": "PNG"}),
        (image.quantize(16), {"format": "PNG"}),
        (image, {"format": "BMP"}),
        (image, {"format": "WEBP"}),
        (image, {"format": "TIFF", "compression": "tiff_lzw"}),
        (image, {"format": "TIFF", "tiffinfo": {274: 6}}),
        (image.quantize(16), {"format": "PNG", "transparency": bytes(range(16)), "exif": exif}),
        (image.quantize(16), {"format": "GIF"}),
    ]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (variant, options) in enumerate(kinds):
            path = Path(folder, str(number))
            variant.save(path, **options)
            found.append((path.read_bytes(), read_image(path, "RGB")))
    return found


def _read_image(folder: Path, generator: random.Random) -> _Verdict:
    original, expected = generator.choice(_images())
    path = folder / "mutated.img"
    path.write_bytes(_change_bytes(original, generator))
    try:
        width, height = read_header(path)
        found = read_image(path, "RGB")
    except DataError as error:
        return "refused" if str(path) in str(error) else f"the message does not name the file: {error}"
    if found.dtype != np.uint8 or found.shape != (height, width, 3):
        return f"got {found.dtype} {found.shape}, but the header says {width}x{height}"
    return "read" if np.array_equal(found, expected) else "read, other pixels"


# --- checkpoints -----------------------------------------------------------------------------------------------------
def _tensors() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b.half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "c.count": torch.tensor(7),
    }


def _read_checkpoint(folder: Path, generator: random.Random) -> _Verdict:
    tensors = _tensors()
    kind = generator.choice(["pth", "legacy", "safetensors", "pkl"])
    path = folder / f"whole.{kind}"
    if not path.exists():
        if kind == "pth":
            save_checkpoint(path, {"model": tensors})
        elif kind == "legacy":
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
        elif kind == "safetensors":
            save_safetensors(path, tensors, {})
        else:
            path.write_bytes(pickle.dumps({name: value.numpy() for name, value in tensors.items()}, protocol=2))
    mutated = folder / "mutated.bin"
    mutated.write_bytes(_change_bytes(path.read_bytes(), generator))
    try:
        found = read_tensors(mutated)
    except CheckpointError as error:
        return "refused" if str(mutated) in str(error) else f"the message does not name the file: {error}"
    if not all(isinstance(value, torch.Tensor) for value in found.values()):
        return "got something other than tensors"
    # The old formats have no checksums, so changes cannot be detected.
    if kind in ("pth", "safetensors") and not _same(found, tensors):
        return f"{kind}: tensors differ from the saved ones"
    return "read"


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def _change_bytes(content: bytes, generator: random.Random) -> bytes:
    """Flip bits, or delete, insert, repeat or overwrite bytes."""
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 3, 10])):
        if not changed:
            break
        at = generator.randrange(len(changed))
        length = min(generator.choice([1, 2, 4, 16, 200]), len(changed) - at)
        change = generator.choice(["flip", "flip", "flip", "cut", "insert", "repeat", "noise", "truncate"])
        if change == "flip":
            changed[at] ^= 1 << generator.randrange(8)
        elif change == "cut":
            del changed[at : at + length]
        elif change == "insert":
            changed[at:at] = generator.randbytes(length)
        elif change == "repeat":
            changed[at:at] = changed[at : at + length]
        elif change == "noise":
            changed[at : at + length] = generator.randbytes(length)
        elif generator.random() < 0.3:
            del changed[at:]
    return bytes(changed)
