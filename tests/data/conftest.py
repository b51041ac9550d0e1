"""A small data set, and a local S3 server for tests, which are skipped without moto and obstore."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pvt_det.data.storage import places, remote
from tests.data.imagenet.fakes import jpeg
from tests.data.storage.s3 import LocalStore, start_proxy


@pytest.fixture(scope="session")
def _moto() -> Iterator[int]:
    for package in ("obstore", "moto", "flask_cors", "boto3"):
        pytest.importorskip(package, reason=f"needs {package}: pip install -e '.[dev]'")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def s3(_moto, tmp_path, monkeypatch) -> Iterator[LocalStore]:
    proxy, store = start_proxy(_moto)
    settings = {
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": "AKIASECRET",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "PVT_DET_CACHE": str(tmp_path / "cache"),
        "PVT_DET_RETRY_SECONDS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    places.forget_remote()
    remote.renew()
    yield store
    proxy.shutdown()
    keys = [each["Key"] for each in store.client.list_objects_v2(Bucket="bucket").get("Contents", [])]
    for key in keys:
        store.client.delete_object(Bucket="bucket", Key=key)
    places.forget_remote()


@pytest.fixture
def coco(tmp_path) -> Path:
    """A data set of six images, one of them in a subfolder and one with a name that is not ASCII."""
    root = tmp_path / "coco"
    names = ["a.jpg", "b.jpg", "sub/c.jpg", "ä.jpg", "e.jpg", "f.jpg"]
    (root / "images/sub").mkdir(parents=True)
    for number, name in enumerate(names):
        (root / "images" / name).write_bytes(jpeg(number))
    images = [{"id": n, "file_name": name, "width": 48, "height": 40} for n, name in enumerate(names)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0} for n in range(6)
    ]
    categories = [{"id": 1, "name": "thing"}]
    (root / "train.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return root


@pytest.fixture
def batches(repo_root) -> Callable:
    """Return the pixels of three training batches of two images, and the facts that a run records about the data."""
    from pvt_det.config import load_config
    from pvt_det.data.catalogs import catalogs_restored
    from pvt_det.data.digest import describe_dataset
    from pvt_det.data.loader import build_detection_train_loader
    from pvt_det.data.sets import register_datasets

    def build(
        json_file: object, images: object, start: int = 0, workers: int = 0
    ) -> tuple[list[bytes], dict[str, str]]:
        data = ["DATASETS.TRAIN_JSON", str(json_file), "DATASETS.TRAIN_IMAGES", str(images)]
        other = [
            "SOLVER.IMS_PER_BATCH",
            "2",
            "DATALOADER.NUM_WORKERS",
            str(workers),
            "SEED",
            "5",
            "MODEL.DEVICE",
            "cpu",
        ]
        cfg = load_config(repo_root / "configs/retinanet_pvt_tiny.yaml", [*data, *other])
        with catalogs_restored():
            register_datasets(cfg)
            loader = iter(build_detection_train_loader(cfg, start_batch=start))
            pixels = [record["image"].numpy().tobytes() for _ in range(3) for record in next(loader)]
            return pixels, describe_dataset(cfg.DATASETS.TRAIN[0])

    return build
