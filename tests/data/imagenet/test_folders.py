"""All layouts give the same images, labels and class indices, and errors name the broken file."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pvt_det.data.imagenet.folders import open_images
from pvt_det.errors import DataError
from tests.data.imagenet.fakes import add_to_tar, class_folders, jpeg


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path / "cache"))


def test_class_folders(tmp_path):
    images = open_images(class_folders(tmp_path / "set"), "train")
    assert images.classes == ("ant", "bee", "cat")
    assert len(images) == 18
    assert images.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert images.name(7) == str(tmp_path / "set/train/bee/001.jpg")
    assert images.read(7) == jpeg(101)


def test_labels_follow_the_given_class_index(tmp_path):
    images = open_images(class_folders(tmp_path / "set"), "val", classes=["cat", "dog", "bee", "ant"])
    assert images.labels.tolist() == [3] * 3 + [2] * 3 + [0] * 3


def test_unknown_class_folder_is_reported(tmp_path):
    root = class_folders(tmp_path / "set")
    (root / "val/cat").rename(root / "val/catt")
    with pytest.raises(DataError, match=r"val/catt: 1 of the 3 .* Did you mean cat"):
        open_images(root, "val", ["ant", "bee", "cat"])


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "folder does not exist"), (("train",), "one folder of images per class"), (("other",), "found other")],
)
def test_folder_without_a_data_set_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / "set", "train")


def _ilsvrc(root: Path) -> Path:
    class_folders(root, val=0)
    for entry in (root / "val").iterdir():
        entry.rmdir()
    for number in range(1, 5):
        (root / f"val/ILSVRC2012_val_{number:08}.JPEG").write_bytes(jpeg(number))
    return root


_NAMED = "ILSVRC2012_val_00000003.JPEG bee\n" + "".join(
    f"ILSVRC2012_val_{number:08}.JPEG {name}\n" for number, name in ((1, "cat"), (2, "ant"), (4, "bee"))
)
_KAGGLE = "ImageId,PredictionString\n" + "".join(
    f"ILSVRC2012_val_{number:08},{name} 1 2 3 4 {name} 5 6 7 8\n"
    for number, name in ((4, "bee"), (1, "cat"), (2, "ant"), (3, "bee"))
)


@pytest.mark.parametrize("content", ["cat\nant\nbee\nbee\n", _NAMED, _KAGGLE], ids=["names", "pairs", "kaggle"])
def test_ilsvrc_with_label_list(tmp_path, content):
    root = _ilsvrc(tmp_path / "set")
    (tmp_path / "list.txt").write_text(content)
    images = open_images(root, "val", val_labels=tmp_path / "list.txt")
    assert images.labels.tolist() == [2, 0, 1, 1]
    assert images.read(2) == jpeg(3)


def test_ilsvrc_with_devkit(tmp_path):
    """The devkit numbers the classes in its own order, which only meta.mat defines."""
    io = pytest.importorskip("scipy.io", reason="SciPy reads the devkit's meta.mat")
    root = _ilsvrc(tmp_path / "set")
    devkit = root / "ILSVRC2012_devkit_t12/data"
    devkit.mkdir(parents=True)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n3\n")
    table = np.array(
        [(1, "cat", "a cat"), (2, "ant", "an ant"), (3, "bee", "a bee")],
        dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")],
    )
    io.savemat(devkit / "meta.mat", {"synsets": table})
    # A data set with missing images still has the right labels.
    (root / "val/ILSVRC2012_val_00000002.JPEG").unlink()
    assert open_images(root, "val").labels.tolist() == [2, 1, 1]
    (devkit / "meta.mat").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"meta.mat: is not the devkit's class table"):
        open_images(root, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\nant\nbee\n", r"ILSVRC2012_val_00000004.JPEG must end with a number from 1 to 3"),
        ("cat\nant\nbee\nowl\n", r"class 'owl' of ILSVRC2012_val_00000004.JPEG"),
        ("x.JPEG cat\n", r"no line for the validation image ILSVRC2012_val_00000001"),
        ("1\n2\n3\n1\n", r"meta.mat: is missing"),
        ("\n", "is empty"),
    ],
)
def test_invalid_label_list_is_reported(tmp_path, content, message):
    root = _ilsvrc(tmp_path / "set")
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        open_images(root, "val", val_labels=tmp_path / "list.txt")
    with pytest.raises(DataError, match="--val-labels"):
        open_images(root, "val")


def _shards(root: Path) -> Path:
    root.mkdir()
    with tarfile.open(root / "set-train-0000.tar", "w") as tar:
        for number, label in enumerate((2, 0, 1)):
            add_to_tar(tar, f"a/{number:05}.jpg", jpeg(number))
            add_to_tar(tar, f"a/{number:05}.cls", str(label).encode())
    with tarfile.open(root / "set-train-0001.tar", "w") as tar:
        add_to_tar(tar, "00009.json", json.dumps({"label": 1, "name": "x"}).encode())
        add_to_tar(tar, "00009.JPEG", jpeg(9))
    return root


def test_shards(tmp_path):
    root = _shards(tmp_path / "set")
    (root / "classes.txt").write_text("ant\nbee\ncat\n")
    images = open_images(root, "train")
    assert images.classes == ("ant", "bee", "cat")
    assert images.labels.tolist() == [2, 0, 1, 1]
    # The second one uses the cached index.
    for copy in (images, open_images(root, "train"), pickle.loads(pickle.dumps(images))):
        assert [copy.read(index) for index in range(4)] == [jpeg(0), jpeg(1), jpeg(2), jpeg(9)]
    assert images.name(3) == f"{root / 'set-train-0001.tar'}: 00009.JPEG"
    assert open_images(_shards(tmp_path / "bare"), "train").classes == ("0", "1", "2")


def test_changed_shard_is_indexed_again(tmp_path):
    root = _shards(tmp_path / "set")
    open_images(root, "train")
    with tarfile.open(root / "set-train-0001.tar", "w") as tar:
        add_to_tar(tar, "1.cls", b"0")
        add_to_tar(tar, "1.png", jpeg(5))
    assert open_images(root, "train").labels.tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize("fault", ["truncated", "unlabeled", "empty", "label", "class"])
def test_invalid_shard_is_reported(tmp_path, fault):
    root = _shards(tmp_path / "set")
    path = root / "set-train-0001.tar"
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif fault == "class":
        (root / "classes.txt").write_text("ant\nbee\n")
    else:
        with tarfile.open(path, "w") as tar:
            if fault != "empty":
                add_to_tar(tar, "1.jpg", jpeg(5))
            if fault == "label":
                add_to_tar(tar, "1.cls", b"-1")
    message = {
        "truncated": "set-train-0001.tar: 00009.JPEG is cut short|set-train-0001.tar: cannot be read as a tar file",
        "unlabeled": "1.jpg has no label",
        "empty": "contains no images",
        "label": r"1\.cls has the label '-1'\. Expected an integer from 0",
        "class": r"set-train-0000\.tar: a/00000\.jpg has the label 2, but there are only 2 classes",
    }[fault]
    with pytest.raises(DataError, match=message):
        open_images(root, "train")
