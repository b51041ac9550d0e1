"""The backbones that a written config can have, by name. All of them get the same recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pvt_det.errors import ConfigError
from pvt_det.models import list_models
from pvt_det.recipes import list_recipes
from pvt_det.utils.text import did_you_mean

DEFAULT = "pvt_tiny"
# Depth of a ResNet, and the keys of MODEL.RESNETS that it needs.
_RESNETS = {18: "DEPTH: 18, RES2_OUT_CHANNELS: 64", 50: "DEPTH: 50", 101: "DEPTH: 101"}
# Names of configs begin with these.
_PREFIXES = {
    "retinanet": "retinanet",
    "atss": "atss",
    "gfl": "gfl",
    "mask_rcnn": "mask-rcnn",
    "semantic_fpn": "semantic",
}
_RESNET = re.compile(r"(?:resnet|r)[_-]?(\d+)(?:[_-]fpn)?", re.IGNORECASE)


@dataclass(frozen=True)
class Backbone:
    """A backbone of a detector.

    Attributes:
        name: Name as in the names of configs, such as "pvt_tiny" or "R_50".
        family: "pvt" or "resnet", as in the names of the base configs.
        weights: Value of MODEL.WEIGHTS for its ImageNet weights.
        keys: Keys of its section of MODEL, as in YAML.
    """

    name: str
    family: str
    weights: str
    keys: str

    def settings(self, *, pretrained: bool) -> list[str]:
        """Return the lines of MODEL that select the backbone.

        Args:
            pretrained: Whether it starts from ImageNet weights.
        """
        if self.family == "pvt":
            end = "}" if pretrained else ", DROP_PATH_RATE: 0.0}  # no regularization: random weights must fit first"
            return [f"  PVT: {{{self.keys}{end}"]
        if pretrained:
            return [f"  RESNETS: {{{self.keys}}}"]
        return [
            "  BACKBONE: {FREEZE_AT: 0}  # no layer is frozen, because it would keep its random weights",
            f"  RESNETS: {{{self.keys}, NORM: BN}}  # the same for BatchNorm",
        ]


def _backbones() -> dict[str, Backbone]:
    pvts = [Backbone(name, "pvt", f"pvt://{name}", f"VARIANT: {name}") for name in list_models()]
    resnets = [Backbone(f"R_{n}", "resnet", f"torchvision://resnet{n}", keys) for n, keys in _RESNETS.items()]
    return {backbone.name: backbone for backbone in (*pvts, *resnets)}


def find_backbone(name: str) -> tuple[Backbone, str]:
    """Look up a backbone.

    Args:
        name: Name of a backbone, such as "pvt_tiny", "R_50" or "resnet50", or of a config that trains a detector on
            COCO, such as "retinanet_R_50". "" returns the default.

    Returns:
        The backbone, and the task that the name of a config begins with, "" otherwise.

    Raises:
        ConfigError: The name is unknown.
    """
    known = _backbones()
    stem = (name or DEFAULT).removesuffix(".yaml").rpartition("/")[2]
    prefix = next((prefix for prefix in _PREFIXES if stem.startswith(f"{prefix}_")), "")
    short = stem.removeprefix(f"{prefix}_")
    if stem in list_recipes():
        short = short.removesuffix("_3x")  # the schedule of COCO
    if resnet := _RESNET.fullmatch(short):
        short = f"R_{resnet[1]}"
    if short in known:
        return known[short], _PREFIXES.get(prefix, "")
    configs = [f"{prefix}_{backbone}" for prefix in _PREFIXES for backbone in known]
    raise ConfigError(
        f"--model {name}: unknown backbone.{did_you_mean(stem, [*known, *configs])} Expected one of "
        f"{', '.join(known)}, or a config such as retinanet_R_50."
    )
