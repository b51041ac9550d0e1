"""Detectron2's catalogs of data sets, which are global."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.data import DatasetCatalog, MetadataCatalog

from pvt_det.data.storage.places import forget_remote


@contextmanager
def catalogs_restored() -> Iterator[None]:
    """Restore the catalogs on exit, so that a run leaves no data sets behind and does not replace those of its caller.

    The next run may then use the same annotation file with other settings, as it could in a process of its own.
    """
    forget_remote()
    functions = dict(DatasetCatalog.data)
    metadata = {name: dict(vars(each)) for name, each in MetadataCatalog.data.items()}
    try:
        yield
    finally:
        DatasetCatalog.data.clear()
        DatasetCatalog.data.update(functions)
        for name in set(MetadataCatalog.data) - set(metadata):
            del MetadataCatalog.data[name]
        for name, values in metadata.items():
            vars(MetadataCatalog.data[name]).clear()
            vars(MetadataCatalog.data[name]).update(values)
