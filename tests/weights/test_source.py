"""All forms of weight sources that a user can give."""

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
    """Return the remote file that a source resolves to."""
    requested = []

    def fetch(remote: Remote) -> Path:
        requested.append(remote)
        return Path("fetched")

    assert locate(source, fetch) == Path("fetched")
    return requested[0]


@pytest.mark.parametrize(
    ("source", "url", "cache_path"),
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
def test_remote_sources(source: str, url: str, cache_path: str) -> None:
    remote = located(source)
    assert (remote.url, remote.cache_path) == (url, cache_path)


def test_url_with_hash() -> None:
    remote = located(f"{URL}#sha256={DIGEST.upper()}")
    assert (remote.url, remote.sha256) == (URL, DIGEST)
    assert located(f"http://example.org/x.pth#sha256={DIGEST}").sha256 == DIGEST


def test_file_is_preferred_over_catalog_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pvt_tiny").mkdir()
    assert located("pvt_tiny").cache_path == "pvt_tiny.pth"
    (tmp_path / "pvt_small").write_bytes(b"x")
    assert locate("pvt_small") == Path("pvt_small")
    assert locate(tmp_path / "pvt_small") == tmp_path / "pvt_small"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("pvt_smal", "not an existing file or a name in the catalog. Did you mean pvt_small"),
        ("pvt://pvt_v2_b9", "not a name in the catalog. Did you mean pvt_v2_b"),
        ("missing.pth", "not an existing file"),
        ("s3://bucket/x.pth", "unknown scheme 's3'. Expected one of pvt://, https://"),
        ("file:///etc/passwd", "unknown scheme 'file'"),
        ("hf://onlyowner", "expected hf://owner/repository"),
        ("hf://a/../../etc/passwd", "expected hf://owner/repository"),
        ("hf://a/b/..", "expected hf://owner/repository"),
        ("detectron2://../x.pkl", "expected a path such as detectron2://"),
        ("torchvision://resnet34", "expected one of torchvision://resnet18"),
        ("https://example.org/", "does not end in a file name"),
        ("https://example.org/x.pth#sha256=12", "expected sha256= and 64 hex digits"),
        ("https://example.org/x.pth#md5=12", "expected sha256= and 64 hex digits"),
    ],
)
def test_invalid_sources_are_refused(source: str, reason: str) -> None:
    with pytest.raises(CheckpointError) as error:
        located(source)
    assert reason in str(error.value)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder\. Expected a weight file"):
        locate(tmp_path)
