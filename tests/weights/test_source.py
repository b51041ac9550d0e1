"""What a user may write where weights are wanted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pvt_det.errors import CheckpointError
from pvt_det.weights.catalog import Remote
from pvt_det.weights.source import locate

DIGEST = "ab" * 32
URL = "https://example.org/a/b/model.safetensors"


def located(source: str) -> Remote:
    """The remote file that a source stands for."""
    asked = []

    def fetch(remote: Remote) -> Path:
        asked.append(remote)
        return Path("fetched")

    assert locate(source, fetch) == Path("fetched")
    return asked[0]


@pytest.mark.parametrize(
    ("source", "url", "place"),
    [
        (
            "pvt://pvt_small",
            "https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth",
            "pvt_small.pth",
        ),
        (
            "pvt_v2_b2_li",
            "https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2_li.pth",
            "pvt_v2_b2_li.pth",
        ),
        (
            "pvt://retinanet_pvtv2-b0_fpn_1x_coco",
            "https://download.openmmlab.com/mmdetection/v2.0/pvt/retinanet_pvtv2-b0_fpn_1x_coco/"
            "retinanet_pvtv2-b0_fpn_1x_coco_20210831_103157-13e9aabe.pth",
            "retinanet_pvtv2-b0_fpn_1x_coco_20210831_103157-13e9aabe.pth",
        ),
        (
            "hf://OpenGVLab/pvt_v2_b0",
            "https://huggingface.co/OpenGVLab/pvt_v2_b0/resolve/main/model.safetensors",
            "hf/OpenGVLab/pvt_v2_b0/model.safetensors",
        ),
        (
            "hf://Zetatech/pvt-tiny-224/pytorch_model.bin",
            "https://huggingface.co/Zetatech/pvt-tiny-224/resolve/main/pytorch_model.bin",
            "hf/Zetatech/pvt-tiny-224/pytorch_model.bin",
        ),
        (
            "torchvision://resnet18",
            "https://download.pytorch.org/models/resnet18-f37072fd.pth",
            "resnet18-f37072fd.pth",
        ),
        (
            "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
            "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
            "detectron2/ImageNetPretrained/MSRA/R-50.pkl",
        ),
        (URL, URL, f"urls/{hashlib.sha256(URL.encode()).hexdigest()[:8]}/model.safetensors"),
    ],
)
def test_remote_sources(source: str, url: str, place: str) -> None:
    remote = located(source)
    assert (remote.url, remote.place) == (url, place)


def test_a_url_may_bring_its_hash() -> None:
    remote = located(f"{URL}#sha256={DIGEST.upper()}")
    assert (remote.url, remote.sha256) == (URL, DIGEST)
    assert located(f"http://example.org/x.pth#sha256={DIGEST}").sha256 == DIGEST


def test_a_file_comes_before_a_catalog_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pvt_tiny").mkdir()
    assert located("pvt_tiny").place == "pvt_tiny.pth"
    (tmp_path / "pvt_small").write_bytes(b"x")
    assert locate("pvt_small") == Path("pvt_small")
    assert locate(tmp_path / "pvt_small") == tmp_path / "pvt_small"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("pvt_smal", "no such file, and no such name in the catalog. Did you mean pvt_small"),
        ("pvt://pvt_v2_b9", "no such name in the catalog. Did you mean pvt_v2_b"),
        ("missing.pth", "no such file"),
        ("s3://bucket/x.pth", "unknown scheme 's3'; known are pvt://, https://"),
        ("file:///etc/passwd", "unknown scheme 'file'"),
        ("hf://onlyowner", "expected hf://owner/repository"),
        ("hf://a/../../etc/passwd", "expected hf://owner/repository"),
        ("hf://a/b/..", "expected hf://owner/repository"),
        ("detectron2://../x.pkl", "expected a path such as detectron2://"),
        ("torchvision://resnet34", "known are torchvision://resnet18"),
        ("https://example.org/", "does not end in a file name"),
        ("https://example.org/x.pth#sha256=12", "expected sha256= and 64 hex digits"),
        ("https://example.org/x.pth#md5=12", "expected sha256= and 64 hex digits"),
    ],
)
def test_refusals(source: str, reason: str) -> None:
    with pytest.raises(CheckpointError) as error:
        located(source)
    assert reason in str(error.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder; give the file"):
        locate(tmp_path)
