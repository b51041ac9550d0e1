"""This package's detectors, rebuilt from Detectron2's own classes for comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn

from benchmarks.textbook import Textbook
from pvt_det.modeling.backbone import PVTBackbone
from pvt_det.models.variants import STAGES, STRIDES

# Detectron2 supports only these settings. Except for a ReLU on P6, they do not change the amount of computation.
AS_DETECTRON2 = (
    *("MODEL.FPN.P7_RELU", "True"),
    *("MODEL.RETINANET.LOSS_NORMALIZER", "ema"),
    *("MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES", "False"),
)

# Number of scores above the threshold. A trained RetinaNet or Mask R-CNN has hundreds to thousands per image.
_CANDIDATES = 1000


class TextbookBackbone(Backbone):
    """The textbook form of a backbone's trunk, as a Detectron2 backbone.

    Args:
        backbone: Backbone whose weights are copied.
    """

    def __init__(self, backbone: PVTBackbone) -> None:
        super().__init__()
        self.textbook = Textbook(backbone)
        self.shapes = {
            name: ShapeSpec(channels=channels, stride=stride)
            for name, channels, stride in zip(STAGES, backbone.embed_dims, STRIDES, strict=True)
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the four feature maps by name.

        Args:
            x: Images `N×3×H×W`.
        """
        return dict(zip(STAGES, self.textbook.forward_pyramid(x), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and stride of each feature map."""
        return self.shapes

    @property
    def size_divisibility(self) -> int:
        """Image sides are padded to multiples of this, as in this package's backbone."""
        return STRIDES[-1]


def build_stock_detector(cfg: CfgNode, ours: nn.Module) -> nn.Module:
    """Build Detectron2's detector with the weights of one of this package's detectors.

    Args:
        cfg: Config of `ours`, with the settings `AS_DETECTRON2`.
        ours: RetinaNet or Mask R-CNN of this package.
    """
    is_dense = isinstance(ours, RetinaNet)
    bottom_up = cast(Any, ours).backbone.bottom_up
    channels = bottom_up.embed_dims[-1]
    size = cfg.MODEL.FPN.OUT_CHANNELS
    fpn = FPN(
        bottom_up=TextbookBackbone(bottom_up),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=size,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, size, "stage4") if is_dense else LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    theirs = cfg.clone()
    theirs.defrost()
    theirs.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    kind = RetinaNet if is_dense else GeneralizedRCNN
    model = kind(**{**kind.from_config(theirs), "backbone": fpn})
    state = {
        key.replace("backbone.bottom_up.", "backbone.bottom_up.textbook.trunk."): value
        for key, value in ours.state_dict().items()
        if key != "loss_normalizer"
    }
    model.load_state_dict(state)
    return model


def spread_scores(model: nn.Module, records: Sequence[dict[str, Any]]) -> None:
    """Give an untrained detector scores like a trained one's, so that postprocessing takes as long.

    The classification layer is scaled until its outputs vary about as much as those of a trained layer, and shifted
    until `_CANDIDATES` scores are above the threshold.

    Args:
        model: RetinaNet or Mask R-CNN of this package, modified in place.
        records: Test input of the images that determine the scores.
    """
    is_dense = isinstance(model, RetinaNet)
    parts: Any = model
    layer = parts.head.cls_score if is_dense else parts.roi_heads.box_predictor.cls_score
    threshold = parts.test_score_thresh if is_dense else parts.roi_heads.box_predictor.test_score_thresh
    seen: list[Tensor] = []
    # A clone, because RetinaNet converts its outputs to probabilities in place.
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        # The initial bias of RetinaNet is so large that the differences between outputs are lost in rounding.
        layer.bias.zero_()
        model.eval()(records)
        hook.remove()
        rows = torch.cat([output.movedim(1, -1).flatten(0, -2) for output in seen]).double()
        mean, scale = rows.mean(dim=0), 1 / rows.std(dim=0).clamp(min=1e-30)
        rows = (rows - mean) * scale
        layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.copy_(-mean * scale)
        if is_dense:
            layer.bias.add_(math.log(threshold / (1 - threshold)) - _kth_largest(rows))
        else:
            # A score is above the threshold if the background's exponential is below
            # exp(z) / threshold minus the sum of the other classes' exponentials.
            others = rows[:, :-1].exp()
            layer.bias[-1] = _kth_largest(others / threshold - others.sum(dim=1, keepdim=True)).clamp(min=1e-6).log()
            layer.weight[-1] = 0


def _kth_largest(values: Tensor) -> Tensor:
    return values.flatten().topk(min(_CANDIDATES, values.numel())).values[-1]
