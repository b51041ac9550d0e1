"""Check the images of a data set, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence

from pvt_det.data.images import check_size, read_header, read_image
from pvt_det.data.storage.places import file_fault, knows_headers, prefetch
from pvt_det.data.storage.references import Reference, join
from pvt_det.errors import DataError, StorageError

# Images to fetch in advance.
_AHEAD = 64


def stored_faults(
    root: Reference, names: Sequence[str], sizes: Sequence[tuple[int, int]], *, decode: bool
) -> dict[int, str]:
    """Find images that are missing, are broken, or have another size than expected.

    Without `decode`, only the index of shards is read, and of individual objects only the names are compared.

    Args:
        root: Folder of the images, a path or URL.
        names: File names.
        sizes: Expected width and height of each image in pixels.
        decode: Whether to decode each image.

    Returns:
        What is wrong, by the index of the image.

    Raises:
        StorageError: An object store does not answer, refuses access, or has changed.
    """
    has_sizes = decode or knows_headers(root)
    paths = [join(root, name) for name in names]
    faults = {}
    for index, path in enumerate(paths):
        if decode and index % _AHEAD == 0:
            prefetch(paths[index : index + 2 * _AHEAD])
        try:
            if fault := file_fault(path):
                raise DataError(f"image {path} {fault}")
            if has_sizes:
                check_size(path, _size(path, decode), sizes[index])
        except StorageError:
            raise
        except DataError as error:
            faults[index] = str(error)
    return faults


def _size(path: str, decode: bool) -> tuple[int, int]:
    if not decode:
        return read_header(path)
    height, width = read_image(path, "RGB").shape[:2]
    return width, height
