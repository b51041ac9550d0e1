"""Images and annotations in an object store: the same as on a disk, or one clear error."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.data.imagenet.folders import open_images
from pvt_det.data.images import read_image
from pvt_det.data.segmentation.folders import LabelSource, check_labels
from pvt_det.data.sharding.run import shard_classes, shard_coco, verify
from pvt_det.data.sharding.writer import Settings
from pvt_det.data.storage import remote
from pvt_det.data.storage.cache import Cache
from pvt_det.data.storage.places import attach, folder_fault, forget_remote, list_folder, local_file, prefetch
from pvt_det.errors import ConfigError, DataError, StorageError
from pvt_det.utils import extras
from tests.data.imagenet.fakes import class_folders, jpeg
from tests.data.storage.s3 import Fault


@pytest.fixture
def images(s3, tmp_path) -> Path:
    """Three images in a folder, which is also at s3://bucket/images."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.jpg", "sub/c d.jpg")):
        (folder / name).write_bytes(jpeg(number, (200, 160)))
    s3.upload(folder, "images")
    return folder


URL = "s3://bucket/images"


def entries(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache/objects").rglob("*") if path.is_file() and path.name != ".lock"]


def test_folder_of_objects(s3, images, tmp_path):
    assert list_folder(URL) == [f"{URL}/a.jpg", f"{URL}/b.jpg"]
    for name in ("a.jpg", "sub/c d.jpg"):
        assert np.array_equal(read_image(f"{URL}/{name}", "BGR"), read_image(images / name, "BGR"))
    s3.requests.clear()
    read_image(f"{URL}/a.jpg", "RGB")
    assert s3.requests == []  # it comes from the cache
    with pytest.raises(DataError, match=r"s3://bucket/images/d\.jpg does not exist"):
        read_image(f"{URL}/d.jpg", "RGB")
    assert folder_fault("s3://bucket/other") == "is empty or does not exist"


def test_object_without_an_attached_folder(images):
    assert np.array_equal(read_image(f"{URL}/a.jpg", "RGB"), read_image(images / "a.jpg", "RGB"))


def test_prefetched_images_need_no_request(s3, images):
    attach(URL)
    prefetch([f"{URL}/a.jpg", f"{URL}/missing.jpg", f"{URL}/b.jpg"])
    expected = read_image(images / "b.jpg", "RGB")
    assert np.array_equal(read_image(f"{URL}/b.jpg", "RGB"), expected)
    fetched = [path for _, path in s3.requests if path.endswith("b.jpg")]
    assert len(fetched) == 1  # not once in advance and once more


@pytest.mark.parametrize("kind", ["500", "cut"])
def test_fault_that_passes_is_repeated(s3, images, kind, monkeypatch):
    monkeypatch.setenv("PVT_DET_RETRY_SECONDS", "60")
    attach(URL)
    s3.faults.append(Fault(r"a\.jpg", kind, times=2))
    assert np.array_equal(read_image(f"{URL}/a.jpg", "RGB"), read_image(images / "a.jpg", "RGB"))
    assert sum(path.endswith("a.jpg") for _, path in s3.requests) == 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("500", r"s3://bucket/images/a\.jpg cannot be read: the server answered with status 500 \(\d attempts"),
        ("cut", r"s3://bucket/images/a\.jpg cannot be read: the answer was cut short \(\d attempts"),
    ],
)
def test_fault_that_stays_is_one_error(s3, images, tmp_path, kind, expected):
    attach(URL)
    s3.faults.append(Fault(r"a\.jpg", kind))
    with pytest.raises(StorageError, match=expected):
        read_image(f"{URL}/a.jpg", "RGB")
    assert not any(path.stat().st_size < 4000 for path in entries(tmp_path))
    s3.faults.clear()
    assert read_image(f"{URL}/a.jpg", "RGB").shape == (160, 200, 3)


def test_expired_credentials_are_not_repeated(s3, images):
    attach(URL)
    s3.requests.clear()
    s3.faults.append(Fault(r"a\.jpg", "expired"))
    with pytest.raises(StorageError, match=r"access was denied \(status 400, ExpiredToken\).* Renew them") as error:
        read_image(f"{URL}/a.jpg", "RGB")
    assert "AKIASECRET" not in str(error.value)
    assert len(s3.requests) == 1


@pytest.mark.parametrize("content", [jpeg(9, (200, 160)), b"short"])
def test_object_that_changes_during_a_run_is_one_error(s3, images, content):
    attach(URL)
    s3.put("images/a.jpg", content)
    with pytest.raises(StorageError, match=r"images/a\.jpg has changed on the server: it had .* start a new run"):
        read_image(f"{URL}/a.jpg", "RGB")
    forget_remote()  # a new run
    if len(content) > 100:
        read_image(f"{URL}/a.jpg", "RGB")


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"x" + data[1:]])
def test_damaged_cache_entry_is_fetched_again(s3, images, tmp_path, damage):
    expected = read_image(images / "a.jpg", "RGB")
    attach(URL)
    read_image(f"{URL}/a.jpg", "RGB")
    for path in entries(tmp_path):
        path.write_bytes(damage(path.read_bytes()))
    s3.requests.clear()
    assert np.array_equal(read_image(f"{URL}/a.jpg", "RGB"), expected)
    assert len(s3.requests) == 1


def test_fetching_process_that_was_killed_is_started_again(images):
    attach(URL)
    assert remote._server is not None
    os.kill(remote._server.process.pid, signal.SIGKILL)
    remote._server.process.wait()
    assert read_image(f"{URL}/a.jpg", "RGB").shape == (160, 200, 3)


def test_annotation_file_is_copied_and_checked(s3, tmp_path):
    s3.put("train.json", b'{"images": []}' * 1000)
    path = local_file("s3://bucket/train.json")
    assert path.name == "train.json"
    assert path.read_bytes() == b'{"images": []}' * 1000
    path.write_bytes(b"damaged")
    forget_remote()
    assert local_file("s3://bucket/train.json").read_bytes() == b'{"images": []}' * 1000
    path.unlink()
    s3.put("train.json", b"{}")
    with pytest.raises(StorageError, match=r"train\.json has changed on the server"):
        local_file("s3://bucket/train.json")
    forget_remote()
    assert local_file("s3://bucket/train.json").read_bytes() == b"{}"
    with pytest.raises(DataError, match=r"s3://bucket/val\.json does not exist"):
        local_file("s3://bucket/val.json")


def test_training_batches_are_those_of_the_folder(s3, coco, batches, tmp_path):
    """With workers, which are forked from a process that has read from the store."""
    expected = batches(coco / "train.json", coco / "images")
    shard_coco(coco / "train.json", coco / "images", tmp_path / "shards", Settings(2500))
    shards = s3.upload(tmp_path / "shards", "shards")
    assert batches(shards, shards, workers=2) == expected
    s3.upload(coco, "coco")
    assert batches("s3://bucket/coco/train.json", "s3://bucket/coco/images", workers=1) == expected
    assert batches(shards, shards, 2)[0][:2] == expected[0][4:]
    s3.client.delete_object(Bucket="bucket", Key="shards/shard-00001.tar")
    with pytest.raises(DataError, match=r"shards/shard-00001\.tar does not exist"):
        batches(shards, shards)


def test_label_maps_and_classes(s3, tmp_path):
    folder = class_folders(tmp_path / "set")
    shard_classes(folder, tmp_path / "shards", Settings(2500))
    plain, shards = s3.upload(folder, "plain"), s3.upload(tmp_path / "shards", "classes")
    expected = open_images(folder, "train")
    for source in (open_images(plain, "train"), open_images(shards, "train")):
        assert source.classes == expected.classes
        assert source.digest() == expected.digest()
        source.prefetch(range(len(source)))
        assert [source.read(n) for n in range(len(source))] == [expected.read(n) for n in range(len(expected))]
    with pytest.raises(DataError, match="expected a folder train/"):
        open_images("s3://bucket/other", "train")
    assert len(verify(f"{shards}/train").files) > 1
    s3.put("classes/train/shard-00000.tar", b"x")
    with pytest.raises(DataError, match=r"shard-00000\.tar has another SHA-256"):
        verify(f"{shards}/train")
    # Every label map is read like an image.
    Image.fromarray(np.full((160, 200), 2, np.uint8)).save(tmp_path / "a.png")
    s3.put("labels/a.png", (tmp_path / "a.png").read_bytes())
    s3.put("pictures/a.jpg", jpeg(0, (200, 160)))
    source = LabelSource("s3://bucket/pictures", "s3://bucket/labels", ("x", "y", "z"))
    assert check_labels(source, "full") == frozenset()
    assert [record["image_id"] for record in source.records()] == ["a"]


def test_upload_of_other_content_is_noticed(s3, coco, tmp_path):
    shard_coco(coco / "train.json", coco / "images", tmp_path / "shards", Settings(2500))
    shards = s3.upload(tmp_path / "shards", "shards")
    content = bytearray((tmp_path / "shards/shard-00000.tar").read_bytes())
    content[900] ^= 1
    s3.put("shards/shard-00000.tar", bytes(content))
    attach(shards)
    with pytest.raises(StorageError, match=r"shard-00000\.tar differs from its index"):
        read_image(f"{shards}/a.jpg", "RGB")


def test_url_with_credentials_is_refused_without_showing_them():
    for url in ("https://me:hidden@host/images", "https://host/images?X-Amz-Signature=hidden"):
        with pytest.raises(ConfigError, match="credentials") as error:
            attach(url)
        assert "hidden" not in str(error.value)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.setattr(remote, "_server", None)
    with pytest.raises(ConfigError, match=r"needs obstore, which is missing.*pip install 'pvt_det\[cloud\]'"):
        attach("s3://bucket/x")


def test_cache_stays_below_its_limit_and_keeps_what_was_used_last(tmp_path):
    cache = Cache(10_000, tmp_path / "objects")
    keys = [f"{number:040x}" for number in range(30)]
    for number, key in enumerate(keys):
        cache.write(key, bytes([number]) * 1000)
        os.utime(cache.path(key), (number, number))
        if number:
            assert cache.read(keys[0], 1000) == bytes(1000)  # used again and again
    kept = [key for key in keys if cache.has(key)]
    assert sum(cache.path(key).stat().st_size for key in kept) <= 10_000
    assert keys[0] in kept
    assert keys[-1] in kept
    assert keys[1] not in kept


def test_shards_on_a_web_server(s3, coco, tmp_path):
    shard_coco(coco / "train.json", coco / "images", tmp_path / "shards", Settings(2500))
    s3.upload(tmp_path / "shards", "shards")
    s3.put("empty.json", b"")
    s3.client.put_bucket_policy(
        Bucket="bucket",
        Policy='{"Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "*"}]}',
    )
    root = f"{s3.endpoint}/bucket/shards"
    assert np.array_equal(read_image(f"{root}/a.jpg", "RGB"), read_image(coco / "images/a.jpg", "RGB"))
    assert local_file(root).read_bytes() == (coco / "train.json").read_bytes()
    assert local_file("s3://bucket/empty.json").read_bytes() == b""
    # Individual images are found by their names, because a web server does not list them.
    s3.put("images/a.jpg", jpeg(0))
    assert read_image(f"{s3.endpoint}/bucket/images/a.jpg", "RGB").shape == (40, 48, 3)
    with pytest.raises(DataError, match=r"images/b\.jpg does not exist"):
        read_image(f"{s3.endpoint}/bucket/images/b.jpg", "RGB")


def test_expired_credentials_at_the_start(s3, images):
    s3.faults.append(Fault("shards.json", "expired"))
    with pytest.raises(StorageError, match=r"shards\.json cannot be read: access was denied"):
        attach(URL)


def test_wrong_environment_is_named(s3, monkeypatch):
    monkeypatch.setenv("PVT_DET_DATA_CACHE_GIB", "all")
    remote.renew()
    with pytest.raises(ConfigError, match=r"PVT_DET_DATA_CACHE_GIB is 'all'\. Expected a number of GiB above 0"):
        attach(URL)
    monkeypatch.setenv("PVT_DET_DATA_CACHE_GIB", "1")
    monkeypatch.setenv("PVT_DET_RETRY_SECONDS", "-1")
    with pytest.raises(ConfigError, match=r"PVT_DET_RETRY_SECONDS is '-1'"):
        attach(URL)
