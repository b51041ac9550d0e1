"""ATSS: RetinaNet with one anchor per position, adaptive training samples and centerness (arXiv 1912.02424)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from pvt_det.modeling.dense import AdaptiveDetector, loss_divisors
from pvt_det.modeling.focal import dense_focal_loss
from pvt_det.modeling.registration import register


@register(META_ARCH_REGISTRY)
class ATSS(AdaptiveDetector):
    """ATSS as in the published PVT v2 detectors, which were trained with MMDetection.

    The loss is the focal loss of the classes, the GIoU loss of the boxes, weighted by their centerness, and the binary
    cross-entropy of the centerness. In inference, scores are multiplied by the predicted centerness.

    Args:
        focal_loss_alpha: Weight of objects in the focal loss, in (0, 1).
        focal_loss_gamma: Exponent of the focal loss, at least 0.
        centerness_loss_weight: Weight of the centerness loss.
        **arguments: Arguments of `AdaptiveDetector`.
    """

    @configurable
    def __init__(
        self, *, focal_loss_alpha: float, focal_loss_gamma: float, centerness_loss_weight: float, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.centerness_loss_weight = centerness_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.ATSS`, `MODEL.ANCHOR_GENERATOR` and the keys of the backbone.

        Returns:
            Keyword arguments of the constructor.
        """
        section = cfg.MODEL.ATSS
        arguments = cls.shared_arguments(cfg, section)
        return {
            **arguments,
            "head": cls.build_head(section, arguments["backbone"], box_channels=4, centerness=True),
            "box2box_transform": Box2BoxTransform(weights=section.BBOX_REG_WEIGHTS),
            "focal_loss_alpha": section.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": section.FOCAL_LOSS_GAMMA,
            "centerness_loss_weight": section.CENTERNESS_LOSS_WEIGHT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compute the losses from the outputs of the head.

        Args:
            images: Batch of images, with their sizes before padding.
            features: Feature maps of each level, `N×C×H_l×W_l`.
            predictions: Logits `N×K×H_l×W_l`, deltas `N×4×H_l×W_l` and centerness `N×1×H_l×W_l` of each level.
            gt_instances: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Scalars "loss_cls", "loss_box_reg" and "loss_centerness".
        """
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        anchors = self.build_anchors(features)
        labels, gt_boxes = self.label_anchors(anchors, gt_instances, images)
        return self.losses(anchors, logits, deltas, centerness, labels, gt_boxes)

    def losses(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        deltas: list[Tensor],
        centerness: list[Tensor],
        labels: Tensor,
        gt_boxes: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses in fp32, also under autocast.

        Args:
            anchors: Anchors of each level, `R_l×4`.
            logits: Logits of each level, `N×R_l×K`.
            deltas: Box deltas of each level, `N×R_l×4`.
            centerness: Logits of the centerness of each level, `N×R_l×1`.
            labels: Labels `N×R`, where R is the sum of all R_l: a class 0 … K-1, K for background, or -1 to ignore.
            gt_boxes: Matched boxes, `N×R×4`.

        Returns:
            Scalars "loss_cls", "loss_box_reg" and "loss_centerness".
        """
        positive, count = self.find_positive(labels)
        all_anchors = Boxes.cat(anchors).tensor
        anchor, target = all_anchors[positive % len(all_anchors)], gt_boxes.flatten(0, 1)[positive]
        with torch.autocast(labels.device.type, enabled=False):
            delta, quality = (
                torch.cat(levels, dim=1).flatten(0, 1)[positive].float() for levels in (deltas, centerness)
            )
            target_quality = centerness_of(anchor, target)
            count, weight = loss_divisors(count, target_quality.sum())
            loss_cls = dense_focal_loss(logits, labels, self.focal_loss_alpha, self.focal_loss_gamma)
            box = self.box2box_transform.apply_deltas(delta, anchor)
            loss_box = (generalized_box_iou_loss(box, target) * target_quality).sum()
            loss_centerness = F.binary_cross_entropy_with_logits(quality[:, 0], target_quality, reduction="sum")
        return {
            "loss_cls": loss_cls / count,
            "loss_box_reg": self.box_loss_weight * loss_box / weight,
            "loss_centerness": self.centerness_loss_weight * loss_centerness / count,
        }

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Compute detections from the outputs of the head.

        Args:
            images: Batch of images, with their sizes before padding.
            features: Feature maps of each level, `N×C×H_l×W_l`.
            predictions: Logits `N×K×H_l×W_l`, deltas `N×4×H_l×W_l` and centerness `N×1×H_l×W_l` of each level.

        Returns:
            Detections of each image, with `pred_boxes` in pixels of the input, `scores` and `pred_classes`, ordered by
            descending score.

        Raises:
            NumericError: The predictions are NaN or infinite.
        """
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        return self.detect(images, self.build_anchors(features), logits, deltas, centerness)


def centerness_of(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Compute the centerness of anchors in boxes: 1 in the middle, and 0 at the border (arXiv 1904.01355, equation 3).

    Args:
        anchors: Anchors `P×4` as (x1, y1, x2, y2), whose centers are inside the boxes.
        boxes: Boxes `P×4`.

    Returns:
        Centerness `P`, from 0 to 1.
    """
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = centers - boxes[:, :2], boxes[:, 2:] - centers
    return (torch.minimum(before, after) / torch.maximum(before, after)).prod(dim=1).sqrt()
