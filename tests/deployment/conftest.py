"""Detectors with the real heads and a backbone of a few convolutions, so that tracing takes only seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from torch import Tensor, nn

import pvt_det.modeling  # noqa: F401  (registers the models)
from pvt_det.config import load_config
from pvt_det.config.architecture import head_key, is_one_stage, is_query_detector
from pvt_det.modeling.registration import register

CONFIGS = Path(__file__).parents[2] / "configs"
CHANNELS = 32  # the groups of the heads' GroupNorms


class FewConvolutions(Backbone):
    """A backbone with feature maps of strides 4 to at most 128."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        # Without padding, the sizes of the maps are short expressions: their algebra takes most of the tracing time.
        self.stem = nn.Conv2d(3, CHANNELS, 2, 2)
        last = max(int(name[1]) for name in names)
        self.stages = nn.ModuleDict(
            {
                f"p{level}": nn.Conv2d(CHANNELS, CHANNELS, *((2, 2) if 2**level <= 32 else (3, 2, 1)))
                for level in range(2, last + 1)
            }
        )
        # With PyTorch's default initialization features shrink from map to map and give ties without a defined order.
        for conv in (self.stem, *self.stages.values()):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self._out_features = names
        self._out_feature_channels = dict.fromkeys(names, CHANNELS)
        self._out_feature_strides = {name: 2 ** int(name[1]) for name in names}

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        maps = {}
        for name, stage in self.stages.items():
            x = maps[name] = F.relu(stage(x))
        return {name: maps[name] for name in self._out_features}


@register(BACKBONE_REGISTRY)
def build_few_convolutions(cfg, input_shape: ShapeSpec) -> FewConvolutions:
    """Build a backbone with the feature maps that the heads use."""
    if is_one_stage(cfg):
        return FewConvolutions(list(cfg.MODEL[head_key(cfg)].IN_FEATURES))
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        return FewConvolutions(list(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES))
    if is_query_detector(cfg):
        return FewConvolutions(list(cfg.MODEL[head_key(cfg)].IN_FEATURES))
    return FewConvolutions(list(cfg.MODEL.RPN.IN_FEATURES))


def _adaptive(head: str) -> tuple[str, ...]:
    """Return overrides that give many detections, although the boxes of neighbors overlap."""
    values = {"NUM_CLASSES": "3", "TOPK_CANDIDATES_TEST": "50", "PRIOR_PROB": "0.3", "NMS_THRESH_TEST": "0.9"}
    return tuple(word for name, value in values.items() for word in (f"MODEL.{head}.{name}", value))


RCNN = (
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "60", "MODEL.RPN.POST_NMS_TOPK_TEST", "50", "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    # Narrower heads, which take most of the time.
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "128", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
)
# Two levels and shallow heads halve the tracing time, and still repeat layers and levels.
SMALL_RCNN = (
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]", "MODEL.RPN.IN_FEATURES", "['p2', 'p3']"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
)
SMALL_RETINANET = (
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]", "MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']"),
    *("MODEL.RETINANET.NUM_CONVS", "1"),
)
SMALL_ATSS, SMALL_GFL = (tuple(word.replace("RETINANET", head) for word in SMALL_RETINANET) for head in ("ATSS", "GFL"))
SMALL_SEMANTIC = ("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p3']", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32")
CASES = {
    "retinanet_pvt_tiny": ("MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "50"),
    "atss_pvt_v2_b2_3x": _adaptive("ATSS"),
    "gfl_pvt_v2_b2_3x": _adaptive("GFL"),
    "mask_rcnn_pvt_tiny": RCNN,
    "cascade_mask_rcnn_pvt_small": RCNN,
    "semantic_fpn_pvt_tiny": ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"),
    "panoptic_fpn_pvt_small": (*RCNN, *SMALL_RCNN, *SMALL_SEMANTIC, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"),
}
SMALL = {
    "retinanet_pvt_tiny": SMALL_RETINANET,
    "atss_pvt_v2_b2_3x": SMALL_ATSS,
    "gfl_pvt_v2_b2_3x": SMALL_GFL,
    "mask_rcnn_pvt_tiny": SMALL_RCNN,
    "semantic_fpn_pvt_tiny": SMALL_SEMANTIC,
}


def build(config: str, *, small: bool = False) -> nn.Module:
    """Build the model of a config with this backbone and random weights that give many detections."""
    words = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_few_convolutions", *CASES[config]]
    words += SMALL.get(config, ()) if small else ()
    cfg = load_config(CONFIGS / f"{config}.yaml", words)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    # Detectron2's initialization of the heads, with a standard deviation of 0.01, gives almost equal scores.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone") and parameter.dim() > 1:
                last = any(part in name for part in ("cls_score", "bbox_pred", "objectness", "anchor_deltas"))
                parameter.normal_(0, 0.05 if last else (2 / parameter[0].numel()) ** 0.5)
        # The statistics of BatchNorms start as those of the identity.
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


@pytest.fixture(name="build")
def _build() -> Callable[..., nn.Module]:
    return build
