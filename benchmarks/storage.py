"""The storage suite: training input of detectors from a folder, from shards, and from a local S3 server.

The photos are copied under new names until there are enough of them. An image that a round has read from the server is
read from it again in the next round, because every round begins with an empty cache.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import torch
from rich.table import Table
from torch.utils.data import DataLoader

from benchmarks.mapper import build_config
from benchmarks.measure import median_ratio
from benchmarks.photos import Records, pack_records, read_records
from pvt_det.data.ahead import LookAhead
from pvt_det.data.loader import MappedDataset
from pvt_det.data.mapper import PVTDatasetMapper
from pvt_det.data.sharding.writer import Item, Settings, write_shards
from pvt_det.data.storage.places import attach, forget_remote, prefetch, read_content
from pvt_det.data.storage.references import is_url, join
from pvt_det.data.storage.shards import IMAGES
from pvt_det.data.workers import WorkerLoader, start_worker

FOLDER, SHARDS = "folder", "shards"
_OBJECTS, _REMOTE, _CACHED = "S3, individual objects", "S3, shards", "S3, shards, all in the cache"
_READ, _TRAIN = "read", "training input"
_BATCH, _SHARD_SIZE = 2, 64 * 2**20


@dataclass(frozen=True)
class StorageRow:
    """The result of one place.

    Attributes:
        task: "read" (the content of the files, in one process) or "training input" (decoded and resized to 800 pixels,
            in worker processes).
        place: Where the images are.
        images_per_s: Images per second, the median over the rounds.
        ratio: Time with the folder divided by the time with this place, the median over the rounds.
    """

    task: str
    place: str
    images_per_s: float
    ratio: float

    def as_dict(self) -> dict[str, object]:
        """Return the attributes by name, for JSON."""
        return asdict(self)


def run_storage(data: Path, images: int, workers: int, latency: float, repeats: int) -> Iterator[StorageRow]:
    """Measure how fast images come from several places.

    Args:
        data: Folder of photos in COCO's layout.
        images: Number of images.
        workers: Worker processes of the data loader.
        latency: Seconds that the server waits before every answer.
        repeats: Number of timed rounds.

    Yields:
        One row per task and place.

    Raises:
        DataError: The folder does not have COCO's layout.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        records = _copy_photos(read_records(data, "train2017", images), root / "bucket/images", images)
        items = [Item(record["file_name"], root / "bucket/images" / record["file_name"]) for record in records]
        write_shards(root / "bucket/shards", IMAGES, items, Settings(_SHARD_SIZE))
        places = {
            FOLDER: str(root / "bucket/images"),
            SHARDS: str(root / "bucket/shards"),
            _OBJECTS: "s3://bucket/images",
            _REMOTE: "s3://bucket/shards",
            _CACHED: "s3://bucket/shards",
        }
        with _server(root, latency) as endpoint, _environment(endpoint):
            for task, read in ((_READ, _read), (_TRAIN, _load)):
                seconds = _time_places(places, records, read, workers, repeats, root)
                for place, times in seconds.items():
                    ratio = median_ratio(seconds[FOLDER], times)
                    yield StorageRow(task, place, images / statistics.median(times), ratio)


def storage_table(rows: list[StorageRow]) -> Table:
    """Build the table of the results.

    Args:
        rows: Results of all tasks and places.
    """
    table = Table(caption="ratio: speed compared with the folder, the median over the rounds")
    for heading in ("task", "images in"):
        table.add_column(heading)
    for heading in ("images/s", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.task, row.place, f"{row.images_per_s:.1f}", f"{row.ratio:.2f}")
    return table


def _copy_photos(records: Records, folder: Path, count: int) -> Records:
    """Write as many photos as asked for, in an order that is not that of their names."""
    folder.mkdir(parents=True)
    copies = []
    for number, record in zip(range(count), itertools.cycle(records), strict=False):
        name = f"{number:06}{Path(record['file_name']).suffix}"
        (folder / name).write_bytes(Path(record["file_name"]).read_bytes())
        copies.append(record | {"file_name": name})
    random.Random(0).shuffle(copies)
    return copies


def _time_places(
    places: dict[str, str],
    records: Records,
    read: Callable[[Records, int], None],
    workers: int,
    repeats: int,
    root: Path,
) -> dict[str, list[float]]:
    """Time all places in rounds, the first of which does not count."""
    seconds: dict[str, list[float]] = {place: [] for place in places}
    for number in range(repeats + 1):
        for place, folder in places.items():
            found = [record | {"file_name": join(folder, record["file_name"])} for record in records]
            if place != _CACHED:
                os.environ["PVT_DET_CACHE"] = str(root / f"cache-{number}-{read.__name__}-{place}")
            forget_remote()
            attach(folder)
            started = time.perf_counter()
            read(found, workers)
            if number:
                seconds[place].append(time.perf_counter() - started)
    return seconds


def _read(records: Records, workers: int) -> None:
    """Read all files in this process, and look ahead as a data loader does."""
    names = [record["file_name"] for record in records]
    is_remote = is_url(names[0])
    if is_remote:
        prefetch(names[:64])
    for number, name in enumerate(names):
        if is_remote:
            prefetch(names[number + 64 : number + 65])
        if read_content(name) is None:
            Path(name).read_bytes()


def _load(records: Records, workers: int) -> None:
    """Load all images as training does, once."""
    cfg = build_config("paper", "horizontal")
    dataset = MappedDataset(pack_records(cfg, records), PVTDatasetMapper(cfg, is_train=True), "stop")
    batches = [
        [(position, position) for position in range(start, min(start + _BATCH, len(records)))]
        for start in range(0, len(records), _BATCH)
    ]
    sampler = LookAhead(batches, _BATCH, workers) if is_url(records[0]["file_name"]) else batches
    loader: DataLoader = WorkerLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=list, worker_init_fn=start_worker
    )
    for batch in loader:
        for sample in batch:
            if isinstance(sample, Exception):
                raise sample


@contextmanager
def _server(root: Path, latency: float) -> Iterator[str]:
    """Run the server in a process of its own, and yield its address."""
    command = [sys.executable, "-m", "benchmarks.s3_server", str(root), "--delay", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def _environment(endpoint: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(AWS_ENDPOINT_URL=endpoint, AWS_SKIP_SIGNATURE="true", AWS_REGION="us-east-1")
    try:
        yield
    finally:
        forget_remote()
        os.environ.clear()
        os.environ.update(before)
