"""Check that an evaluation has seen every image of its data set exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pvt_det.errors import DataError
from pvt_det.utils.text import counted


def unreadable_images(count: int) -> str:
    """Start a sentence about images that could not be read, which ends with "excluded from …".

    Args:
        count: Number of images, at least 1.
    """
    return counted(count, "image could not be read and is", "images could not be read and are")


def check_complete(dataset_name: str, evaluated: Iterable[int | str], expected: Iterable[int | str]) -> None:
    """Check that every image was evaluated exactly once.

    Args:
        dataset_name: Name of the data set, for the message.
        evaluated: Ids or file names of the evaluated images, one for each evaluation.
        expected: Ids or file names of all images, in any order.

    Raises:
        DataError: Images are missing, are repeated or do not belong to this data set.
    """
    counts, known = Counter(evaluated), set(expected)
    faults = {
        ("is repeated", "are repeated"): [image for image, count in counts.items() if count > 1],
        ("is missing", "are missing"): known - counts.keys(),
        ("does not belong to this data set", "do not belong to this data set"): counts.keys() - known,
    }
    found = []
    for (one, many), images in faults.items():
        if images:
            names = ", ".join(map(str, sorted(images)[:5]))
            kind = "files" if any(isinstance(image, str) for image in images) else "ids"
            found.append(f"{counted(len(images), one, many)} ({kind} {names})")
    if found:
        raise DataError(
            f"{dataset_name}: of {counted(len(known), 'image')}, {', '.join(found)}. The metrics would be misleading. "
            "Evaluate every image exactly once."
        )
