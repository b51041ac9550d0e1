"""Folders of shards: the same images as in the folder they were made from, deterministic, continued and verified."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.data.imagenet.folders import open_images
from pvt_det.data.images import read_header, read_image, read_labels
from pvt_det.data.segmentation.folders import LabelSource, check_labels
from pvt_det.data.sharding import writer
from pvt_det.data.sharding.run import shard_classes, shard_coco, shard_labels, verify
from pvt_det.data.sharding.writer import Settings
from pvt_det.data.storage.places import attach, list_folder
from pvt_det.errors import ConfigError, DataError
from tests.command_line import run_command
from tests.data.imagenet.fakes import class_folders, jpeg

SMALL = Settings(shard_size=2500)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_shards_stand_for_the_folder(coco, tmp_path):
    shards = tmp_path / "shards"
    (written,) = shard_coco(coco / "train.json", coco / "images", shards, SMALL)
    assert len(written.description.shards) == 3
    assert (shards / "annotations.json").read_bytes() == (coco / "train.json").read_bytes()
    for name in ("a.jpg", "sub/c.jpg", "ä.jpg"):
        assert np.array_equal(read_image(shards / name, "BGR"), read_image(coco / "images" / name, "BGR"))
        assert read_header(shards / name) == (48, 40)
    assert [Path(name).name for name in list_folder(shards)] == ["a.jpg", "b.jpg", "e.jpg", "f.jpg", "ä.jpg"]
    with tarfile.open(shards / "shard-00000.tar") as tar:
        assert tar.getnames() == ["a.jpg", "b.jpg"]
    with pytest.raises(DataError, match=r"image .*shards/g\.jpg does not exist"):
        read_image(shards / "g.jpg", "RGB")


def test_interrupted_shards_are_continued_with_the_same_bytes(coco, tmp_path, monkeypatch):
    shard_coco(coco / "train.json", coco / "images", tmp_path / "whole", SMALL)
    write, written = writer._write_shard, []

    def stop_at_third(path, *rest):
        written.append(path.name)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(path, *rest)

    monkeypatch.setattr(writer, "_write_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        shard_coco(coco / "train.json", coco / "images", tmp_path / "parts", SMALL)
    assert attach(tmp_path / "parts") is None
    damaged = tmp_path / "parts/shard-00001.tar"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    shard_coco(coco / "train.json", coco / "images", tmp_path / "parts", SMALL)
    # The first shard was kept, and the damaged one written again.
    assert written[3:] == ["shard-00001.tar", "shard-00002.tar"]
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    with pytest.raises(DataError, match="already a complete folder"):
        shard_coco(coco / "train.json", coco / "images", tmp_path / "parts", SMALL)


def test_unusable_images_are_reported_and_kept(coco, tmp_path):
    (coco / "images/a.jpg").write_bytes(jpeg(0)[:-20])
    (coco / "images/b.jpg").unlink()
    with pytest.raises(DataError) as error:
        shard_coco(coco / "train.json", coco / "images", tmp_path / "shards", SMALL)
    assert "1 x image file that is missing" in str(error.value)
    assert "a.jpg is broken or cut short" in str(error.value)
    (written,) = shard_coco(coco / "train.json", coco / "images", tmp_path / "shards", Settings(2500, on_error="skip"))
    assert list(written.description.unusable) == ["a.jpg"]
    with pytest.raises(DataError, match=r"shards/a\.jpg is broken or cut short"):
        read_header(tmp_path / "shards/a.jpg")
    with pytest.raises(DataError, match=r"shards/b\.jpg does not exist"):
        read_header(tmp_path / "shards/b.jpg")


def test_verify_names_every_damaged_file(coco, tmp_path):
    shards = tmp_path / "shards"
    shard_coco(coco / "train.json", coco / "images", shards, SMALL)
    assert len(verify(shards).files) == 5
    path = shards / "shard-00001.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (shards / "annotations.json").unlink()
    with pytest.raises(DataError, match=r"(?s)shard-00001\.tar has another SHA-256.*annotations\.json cannot be read"):
        verify(shards)


@pytest.mark.parametrize("fault", ["cut shard", "index", "version", "no description"])
def test_damaged_folder_is_refused(coco, tmp_path, fault):
    shards = tmp_path / "shards"
    shard_coco(coco / "train.json", coco / "images", shards, SMALL)
    text = (shards / "shards.json").read_text()
    if fault == "cut shard":
        (shards / "shard-00000.tar").write_bytes(b"")
    elif fault == "index":
        (shards / "index.npz").write_bytes(io.BytesIO().getvalue())
    elif fault == "version":
        (shards / "shards.json").write_text(text.replace('"version": 1', '"version": 2'))
    else:
        (shards / "shards.json").write_text("[]")
    expected = {
        "cut shard": r"shard-00000\.tar has 0 bytes, but shards\.json says",
        "index": r"index\.npz is not the one that shards\.json describes",
        "version": "version 2 .* Update pvt_det",
        "no description": "does not describe a folder of shards",
    }
    with pytest.raises(DataError, match=expected[fault]):
        attach(shards)


def test_training_batches_are_those_of_the_folder(coco, tmp_path, batches):
    """With shards, a loader gives the same batches, from the beginning and from the middle."""
    shards = tmp_path / "shards"
    shard_coco(coco / "train.json", coco / "images", shards, SMALL)

    expected, facts = batches(coco / "train.json", coco / "images", 0)
    assert batches(shards, shards, 0, workers=1) == (expected, facts)
    assert batches(shards / "annotations.json", shards, 2)[0][:2] == expected[4:]


def test_label_maps_are_those_of_the_folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        for folder, suffix in (("images", "jpg"), ("labels", "png")):
            path = tmp_path / folder / f"{name}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 3, (20, 30), np.uint8)).save(path)
    images, labels, shards = tmp_path / "images", tmp_path / "labels", tmp_path / "shards"
    written = shard_labels(images, labels, shards, SMALL)
    assert [each.options for each in written] == [
        ["--train-images", str(shards / "images")],
        ["--train-labels", str(shards / "labels")],
    ]
    source = LabelSource(str(shards / "images"), str(shards / "labels"), ("x", "y", "z"))
    assert check_labels(source, "full") == frozenset()
    assert [record["image_id"] for record in source.records()] == ["a", "b"]
    record = source.records()[1]
    assert np.array_equal(read_labels(record["sem_seg_file_name"]), read_labels(labels / "b.png"))
    (labels / "b.png").unlink()
    with pytest.raises(DataError, match="1 x image without a label map: b"):
        shard_labels(images, labels, tmp_path / "others", SMALL)


def test_class_folders_are_the_same_images_in_the_same_order(tmp_path):
    folder = class_folders(tmp_path / "set")
    (folder / "train/bee/x.png").write_bytes(jpeg(7))
    shard_classes(folder, tmp_path / "shards", SMALL)
    for split in ("train", "val"):
        expected, found = open_images(folder, split), open_images(tmp_path / "shards", split)
        assert found.classes == expected.classes
        assert found.labels.tolist() == expected.labels.tolist()
        assert [found.read(n) for n in range(len(found))] == [expected.read(n) for n in range(len(expected))]
        assert found.digest() == expected.digest()
        found.prefetch([0, 1])  # needs no object store
    assert open_images(tmp_path / "shards", "val", ["bee", "cat", "ant"]).labels.tolist() == [2] * 3 + [0] * 3 + [1] * 3
    with pytest.raises(DataError, match=r"1 of the 3 classes, such as bee"):
        open_images(tmp_path / "shards", "val", ["ant", "cat"])
    # Readers of WebDataset's layout get the same labels.
    with tarfile.open(tmp_path / "shards/val/shard-00000.tar") as tar:
        assert tar.getnames()[:2] == ["ant/000.jpg", "ant/000.cls"]
    (tmp_path / "shards/val/shards.json").unlink()
    assert open_images(tmp_path / "shards", "val").labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    (folder / "train/bee/x.jpg").write_bytes(jpeg(8))
    with pytest.raises(DataError, match=r"bee/x\.jpg and bee/x\.png cannot be in the same shards"):
        shard_classes(folder, tmp_path / "others", SMALL)


def test_command_line(coco, tmp_path, capsys):
    words = ["--json", str(coco / "train.json"), "--images", str(coco / "images")]
    with pytest.raises(ConfigError, match="--output is missing"):
        run_command("shard", words)
    assert run_command("shard", [*words, "--output", tmp_path / "shards", "--check-data", "full"]) == 0
    assert f"--train-images {tmp_path / 'shards'}" in capsys.readouterr().out
    assert run_command("shard", ["--verify", tmp_path / "shards"]) == 0
    assert "3 files verified" in capsys.readouterr().out
