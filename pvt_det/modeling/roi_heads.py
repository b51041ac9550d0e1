"""Detectron2's ROI heads with MMDetection's matching as a choice, and exact under autocast."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.modeling.finite import require_finite
from pvt_det.modeling.registration import register


class BestProposalMatcher(Matcher):
    """Matches each proposal with the box it overlaps most, but each box's best proposal with that box.

    So a proposal goes to the box whose best it is, even when it overlaps another box more; both overlaps are above the
    threshold. This is MMDetection's assigner with low-quality matches and its least overlap equal to the threshold, as
    in its Mask R-CNN.

    Args:
        threshold: Least IoU of a match, in (0, 1).
        boxes_appended: The last proposals are the boxes themselves, in order (`ROI_HEADS.PROPOSAL_APPEND_GT`); each is
            its own match and takes no part in finding the best proposal.
    """

    def __init__(self, threshold: float, boxes_appended: bool) -> None:
        super().__init__([threshold], [0, 1], allow_low_quality_matches=False)
        self.threshold = threshold
        self.boxes_appended = boxes_appended

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match by IoU, boxes × proposals; returns each proposal's box and label (1 foreground, 0 background)."""
        matches, labels = super().__call__(match_quality_matrix)
        num_boxes, num_proposals = match_quality_matrix.shape
        if self.boxes_appended:
            num_proposals -= num_boxes
            matches[num_proposals:] = torch.arange(num_boxes, device=matches.device)
        if num_boxes and num_proposals:
            quality = match_quality_matrix[:, :num_proposals]
            best = quality.amax(dim=1, keepdim=True)
            is_best = (quality == best) & (best >= self.threshold)
            # Of several boxes that share a best proposal, the last one gets it.
            rank = torch.arange(1, num_boxes + 1, device=matches.device)[:, None]
            claimed = (is_best * rank).amax(dim=0)
            matches[:num_proposals] = torch.where(claimed > 0, claimed - 1, matches[:num_proposals])
        return matches, labels


class _Fp32Pooling:
    """Mixin: leave autocast behind where it would round coordinates or scores.

    Detectron2's ROIAlign casts boxes to the features' type: in bf16 a coordinate of 800 moves by up to 2 pixels.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See Detectron2's ROIHeads.forward.

        Raises:
            NumericError: In inference, features are NaN or infinite.
        """
        # ROIAlign would bring channels-last maps into this order itself, anew for boxes and masks.
        features = {
            name: level.to(torch.float32, memory_format=torch.contiguous_format) for name, level in features.items()
        }
        if not self.training:  # type: ignore[attr-defined]
            require_finite(features.values(), "features")
        return super().forward(images, features, proposals, targets)  # type: ignore[misc]

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)  # type: ignore[misc]
        for predictor in arguments.get("box_predictors", [arguments.get("box_predictor")]):
            predictor.register_forward_hook(_in_fp32)
        return arguments


def _in_fp32(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not module.training:
        require_finite(outputs, "scores or boxes")
    return tuple(output.float() for output in outputs)


@register(ROI_HEADS_REGISTRY)
class PVTROIHeads(_Fp32Pooling, StandardROIHeads):
    """Detectron2's StandardROIHeads with `MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Detectron2's arguments, with the matcher chosen by the config."""
        arguments = super().from_config(cfg, input_shape)
        heads = cfg.MODEL.ROI_HEADS
        if heads.ALLOW_LOW_QUALITY_MATCHES:
            if len(heads.IOU_THRESHOLDS) != 1:
                raise ConfigError(
                    f"MODEL.ROI_HEADS.IOU_THRESHOLDS = {heads.IOU_THRESHOLDS}: "
                    "expected just one with ALLOW_LOW_QUALITY_MATCHES."
                )
            arguments["proposal_matcher"] = BestProposalMatcher(heads.IOU_THRESHOLDS[0], heads.PROPOSAL_APPEND_GT)
        return arguments


@register(ROI_HEADS_REGISTRY)
class PVTCascadeROIHeads(_Fp32Pooling, CascadeROIHeads):
    """Detectron2's CascadeROIHeads, exact under autocast."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Detectron2's arguments.

        Raises:
            ConfigError: Low-quality matches are asked for, which no published cascade has.
        """
        if cfg.MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES:
            raise ConfigError("MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES: the cascade has no such matching; set False.")
        return super().from_config(cfg, input_shape)
