"""Detectron2's ROI heads with optional MMDetection matching, and in fp32 under autocast."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.modeling.finite import require_finite
from pvt_det.modeling.registration import register


class BestProposalMatcher(Matcher):
    """Match each proposal with the box it overlaps most, but the best proposal of each box with that box.

    The best proposal of a box is matched with that box even if it overlaps another box more, as long as its IoU is at
    least the threshold. This is MMDetection's assigner with low-quality matches and a minimum IoU equal to the
    threshold, as in its Mask R-CNN.

    Args:
        threshold: Minimum IoU of a match, in (0, 1).
        boxes_appended: Whether the last proposals are the boxes themselves, in order (`ROI_HEADS.PROPOSAL_APPEND_GT`).
            Each of them is matched with itself, and ignored in the search for the best proposal.
    """

    def __init__(self, threshold: float, boxes_appended: bool) -> None:
        super().__init__([threshold], [0, 1], allow_low_quality_matches=False)
        self.threshold = threshold
        self.boxes_appended = boxes_appended

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match proposals with boxes.

        Args:
            match_quality_matrix: IoU of boxes and proposals, `G×P`.

        Returns:
            Index of the matched box of each proposal, `P`, and its label, `P`: 1 for foreground, 0 for background.
        """
        matches, labels = super().__call__(match_quality_matrix)
        num_boxes, num_proposals = match_quality_matrix.shape
        if self.boxes_appended:
            num_proposals -= num_boxes
            matches[num_proposals:] = torch.arange(num_boxes, device=matches.device)
        if num_boxes and num_proposals:
            quality = match_quality_matrix[:, :num_proposals]
            best = quality.amax(dim=1, keepdim=True)
            is_best = (quality == best) & (best >= self.threshold)
            # If several boxes share a best proposal, it is matched with the last of them.
            rank = torch.arange(1, num_boxes + 1, device=matches.device)[:, None]
            claimed = (is_best * rank).amax(dim=0)
            matches[:num_proposals] = torch.where(claimed > 0, claimed - 1, matches[:num_proposals])
        return matches, labels


class Fp32Pooling:
    """Mixin that computes in fp32 under autocast where lower precision would round coordinates or scores.

    Detectron2's ROIAlign casts boxes to the dtype of the features. In bf16, this moves a coordinate of 800 by up to 2
    pixels.

    Args:
        *args: Arguments of Detectron2's heads.
        **kwargs: Arguments of Detectron2's heads.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():  # type: ignore[attr-defined]
            if isinstance(module, FastRCNNOutputLayers):
                module.register_forward_hook(_cast_to_fp32)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Run the heads on features in fp32.

        Args:
            images: Batch of images.
            features: Feature maps by name, `N×C×H_l×W_l`.
            proposals: Proposals of each image, with `proposal_boxes`.
            targets: Ground truth of each image. Only needed in training.

        Returns:
            Proposals (training) or detections (inference) of each image, and the losses by name (training).

        Raises:
            NumericError: In inference, features are NaN or infinite.
        """
        features = _in_fp32(features)
        if not self.training:  # type: ignore[attr-defined]
            require_finite(features.values(), "features")
        return super().forward(images, features, proposals, targets)  # type: ignore[misc]

    def forward_with_given_boxes(self, features: dict[str, Tensor], instances: list[Instances]) -> list[Instances]:
        """Predict the masks of given boxes from features in fp32.

        Args:
            features: Feature maps by name, `N×C×H_l×W_l`.
            instances: Boxes of each image, with `pred_boxes` and `pred_classes`.

        Returns:
            The same instances, with `pred_masks` if the model has masks.
        """
        return super().forward_with_given_boxes(_in_fp32(features), instances)  # type: ignore[misc]


def _in_fp32(features: dict[str, Tensor]) -> dict[str, Tensor]:
    # Otherwise ROIAlign would copy channels-last maps into contiguous memory separately for boxes and masks.
    return {name: level.to(torch.float32, memory_format=torch.contiguous_format) for name, level in features.items()}


def _cast_to_fp32(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not module.training:
        require_finite(outputs, "scores or boxes")
    return tuple(output.float() for output in outputs)


@register(ROI_HEADS_REGISTRY)
class PVTROIHeads(Fp32Pooling, StandardROIHeads):
    """Detectron2's StandardROIHeads with support for `MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES` in addition to the keys that
                Detectron2 uses.
            input_shape: Channels and strides of the feature maps, by name.

        Returns:
            Keyword arguments of the constructor.

        Raises:
            ConfigError: Low-quality matches are enabled with several IoU thresholds.
        """
        arguments = super().from_config(cfg, input_shape)
        heads = cfg.MODEL.ROI_HEADS
        if heads.ALLOW_LOW_QUALITY_MATCHES:
            if len(heads.IOU_THRESHOLDS) != 1:
                raise ConfigError(
                    f"MODEL.ROI_HEADS.IOU_THRESHOLDS = {heads.IOU_THRESHOLDS}: "
                    "expected a single threshold with ALLOW_LOW_QUALITY_MATCHES."
                )
            arguments["proposal_matcher"] = BestProposalMatcher(heads.IOU_THRESHOLDS[0], heads.PROPOSAL_APPEND_GT)
        return arguments
