"""Catalog of published weight files and their URLs."""

from __future__ import annotations

from dataclasses import dataclass

_PVT = "https://github.com/whai362/PVT/releases/download/v2"
_HUB = "https://huggingface.co"
_MMDET = "https://download.openmmlab.com/mmdetection/v2.0/pvt"
_TORCHVISION = "https://download.pytorch.org/models"
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2"


@dataclass(frozen=True)
class Remote:
    """A file on the internet.

    Attributes:
        url: URL of the file.
        cache_path: Path relative to the cache folder. A file that was put there by hand is used.
        sha256: Hex digits of the file's SHA-256, all 64 or as many of the first as are published; "" if none are.
        hub: Repository and file on the Hugging Face Hub; None for a file elsewhere.
    """

    url: str
    cache_path: str
    sha256: str = ""
    hub: tuple[str, str] | None = None


def hub_file(repository: str, file: str = "model.safetensors") -> Remote:
    """Return the location of a file on the Hugging Face Hub.

    Args:
        repository: The repository, as `owner/name`.
        file: Path of the file in the repository.
    """
    return Remote(f"{_HUB}/{repository}/resolve/main/{file}", f"hf/{repository}/{file}", hub=(repository, file))


def detectron2_file(path: str) -> Remote:
    """Return the location of a file in Detectron2's storage.

    Args:
        path: Path of the file there, such as `ImageNetPretrained/MSRA/R-50.pkl`.
    """
    return Remote(f"{_DETECTRON2}/{path}", f"detectron2/{path}")


def _hash_in_name(base: str, file: str) -> Remote:
    """Read 8 digits of the SHA-256 from a file name such as `…-1234abcd.pth` or `…_1234abcd.pth`."""
    return Remote(f"{base}/{file}", file, file.removesuffix(".pth")[-8:])


def _zoo(name: str, stamp: str) -> dict[str, Remote]:
    return {name: _hash_in_name(f"{_MMDET}/{name}", f"{name}_{stamp}.pth")}


CLASSIFIERS = (
    *("pvt_tiny", "pvt_small", "pvt_medium", "pvt_large"),
    *("pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b2_li", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5"),
)

# Name → file. The names of detectors end in their schedule and data set.
CATALOG: dict[str, Remote] = {
    # Classifiers of the papers' authors, in the layout "published PVT". https://github.com/whai362/PVT
    **{name: Remote(f"{_PVT}/{name}.pth", f"{name}.pth") for name in CLASSIFIERS},
    # The same classifiers in the layouts of transformers and timm.
    **{
        f"Zetatech/pvt-{size}-224": hub_file(f"Zetatech/pvt-{size}-224")
        for size in ("tiny", "small", "medium", "large")
    },
    **{f"OpenGVLab/pvt_v2_b{i}": hub_file(f"OpenGVLab/pvt_v2_b{i}") for i in range(6)},
    **{f"timm/{name}.in1k": hub_file(f"timm/{name}.in1k") for name in CLASSIFIERS if "v2" in name},
    # Detectors from MMDetection's model zoo (configs/pvt/metafile.yml): RetinaNet, 1x schedule, on COCO.
    **_zoo("retinanet_pvt-t_fpn_1x_coco", "20210831_103110-17b566bd"),
    **_zoo("retinanet_pvt-s_fpn_1x_coco", "20210906_142921-b6c94a5b"),
    **_zoo("retinanet_pvt-m_fpn_1x_coco", "20210831_103243-55effa1b"),
    **_zoo("retinanet_pvtv2-b0_fpn_1x_coco", "20210831_103157-13e9aabe"),
    **_zoo("retinanet_pvtv2-b1_fpn_1x_coco", "20210831_103318-7e169a7d"),
    **_zoo("retinanet_pvtv2-b2_fpn_1x_coco", "20210901_174843-529f0b9a"),
    **_zoo("retinanet_pvtv2-b3_fpn_1x_coco", "20210903_151512-8357deff"),
    **_zoo("retinanet_pvtv2-b4_fpn_1x_coco", "20210901_170151-83795c86"),
    **_zoo("retinanet_pvtv2-b5_fpn_1x_coco", "20210902_201800-3420eb57"),
    # ImageNet classifiers of torchvision, for the baselines.
    "resnet18": _hash_in_name(_TORCHVISION, "resnet18-f37072fd.pth"),
    "resnet50": _hash_in_name(_TORCHVISION, "resnet50-0676ba61.pth"),
    "resnet101": _hash_in_name(_TORCHVISION, "resnet101-63fe2227.pth"),
    # The ImageNet weights of the same baselines that Detectron2's own configs start from.
    "ImageNetPretrained/MSRA/R-50.pkl": detectron2_file("ImageNetPretrained/MSRA/R-50.pkl"),
    "ImageNetPretrained/MSRA/R-101.pkl": detectron2_file("ImageNetPretrained/MSRA/R-101.pkl"),
    "ImageNetPretrained/torchvision/R-50.pkl": detectron2_file("ImageNetPretrained/torchvision/R-50.pkl"),
    "ImageNetPretrained/torchvision/R-101.pkl": detectron2_file("ImageNetPretrained/torchvision/R-101.pkl"),
}

# Recipe → name of the trained detector in the catalog.
DETECTORS: dict[str, str] = {
    "retinanet_pvt_tiny": "retinanet_pvt-t_fpn_1x_coco",
    "retinanet_pvt_small": "retinanet_pvt-s_fpn_1x_coco",
    "retinanet_pvt_medium": "retinanet_pvt-m_fpn_1x_coco",
    **{f"retinanet_pvt_v2_b{size}": f"retinanet_pvtv2-b{size}_fpn_1x_coco" for size in range(6)},
}
