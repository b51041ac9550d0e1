"""Generalized Focal Loss: ATSS whose scores say how well boxes fit, with distributions as boxes (arXiv 2006.04388)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from pvt_det.modeling.dense import AdaptiveDetector, loss_divisors
from pvt_det.modeling.focal import dense_focal_loss
from pvt_det.modeling.registration import register

# Targets end before the last value of a distribution, so that there is always a next one.
_MARGIN = 0.1


class Box2BoxTransformIntegral(Box2BoxTransformLinear):
    """Transform of boxes whose four sides are distributions (arXiv 2006.04388, equation 4).

    A side is the expectation of its distance from the center, in units of the source box: 0, 1, … `reg_max`.

    Args:
        reg_max: Largest distance of a side. A distribution has one more value.
    """

    def __init__(self, reg_max: int) -> None:
        super().__init__(normalize_by_size=True)
        self.reg_max = reg_max

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Compute boxes from distributions.

        Args:
            deltas: Logits `P×(4·(reg_max + 1))` of the left, top, right and bottom side.
            boxes: Square source boxes `P×4`, whose side is the unit of the distances.

        Returns:
            Boxes `P×4`.
        """
        values = torch.arange(self.reg_max + 1, dtype=torch.float32, device=deltas.device)
        # A matrix product would be rounded to bf16 under autocast.
        distances = (deltas.float().unflatten(1, (4, -1)).softmax(dim=2) * values).sum(dim=2)
        boxes_of_sides: Tensor = super().apply_deltas(distances, boxes)
        return boxes_of_sides


@register(META_ARCH_REGISTRY)
class GFL(AdaptiveDetector):
    """GFL as in the published PVT v2 detectors, which were trained with MMDetection.

    The loss is the quality focal loss of the classes, whose targets are the IoUs of the predicted boxes, and the GIoU
    loss and the distribution focal loss of the boxes, both weighted by the scores.

    Args:
        quality_focal_beta: Exponent of the quality focal loss, at least 0.
        distribution_loss_weight: Weight of the distribution focal loss.
        **arguments: Arguments of `AdaptiveDetector`.
    """

    box2box_transform: Box2BoxTransformIntegral
    anchor_generator: DefaultAnchorGenerator

    @configurable
    def __init__(self, *, quality_focal_beta: float, distribution_loss_weight: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.quality_focal_beta = quality_focal_beta
        self.distribution_loss_weight = distribution_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.GFL`, `MODEL.ANCHOR_GENERATOR` and the keys of the backbone.

        Returns:
            Keyword arguments of the constructor.
        """
        section = cfg.MODEL.GFL
        arguments = cls.shared_arguments(cfg, section)
        return {
            **arguments,
            "head": cls.build_head(section, arguments["backbone"], box_channels=4 * (section.REG_MAX + 1)),
            "box2box_transform": Box2BoxTransformIntegral(section.REG_MAX),
            "quality_focal_beta": section.QUALITY_FOCAL_BETA,
            "distribution_loss_weight": section.DISTRIBUTION_LOSS_WEIGHT,
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
            predictions: Logits `N×K×H_l×W_l` and distributions `N×(4·(reg_max + 1))×H_l×W_l` of each level.
            gt_instances: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Scalars "loss_cls", "loss_box_reg" and "loss_dfl".
        """
        logits, sides = self._transpose(predictions)
        anchors = self.build_anchors(features)
        labels, gt_boxes = self.label_anchors(anchors, gt_instances, images)
        return self.losses(self.cells_of(anchors), logits, sides, labels, gt_boxes)

    def losses(
        self, cells: list[Boxes], logits: list[Tensor], sides: list[Tensor], labels: Tensor, gt_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses in fp32, also under autocast.

        Args:
            cells: Cells of each level, `R_l×4`: squares whose side is the stride.
            logits: Logits of each level, `N×R_l×K`.
            sides: Distributions of each level, `N×R_l×(4·(reg_max + 1))`.
            labels: Labels `N×R`, where R is the sum of all R_l: a class 0 … K-1, K for background, or -1 to ignore.
            gt_boxes: Matched boxes, `N×R×4`.

        Returns:
            Scalars "loss_cls", "loss_box_reg" and "loss_dfl".
        """
        positive, count = self.find_positive(labels)
        all_cells = Boxes.cat(cells).tensor
        cell, target = all_cells[positive % len(all_cells)], gt_boxes.flatten(0, 1)[positive]
        with torch.autocast(labels.device.type, enabled=False):
            logit, side = (torch.cat(levels, dim=1).flatten(0, 1)[positive].float() for levels in (logits, sides))
            box = self.box2box_transform.apply_deltas(side, cell)
            quality = matched_pairwise_iou(Boxes(box.detach()), Boxes(target))
            score = logit.detach().sigmoid().amax(dim=1)
            count, weight = loss_divisors(count, score.sum())

            # All classes are background at first. Replace the terms of the positive ones.
            background = torch.where(labels < 0, labels, self.num_classes)
            label = labels.flatten()[positive, None]
            loss_cls = dense_focal_loss(logits, background, -1, self.quality_focal_beta)
            correction = _quality_correction(logit.gather(1, label)[:, 0], quality, self.quality_focal_beta)
            loss_box = (generalized_box_iou_loss(box, target) * score).sum()
            distance = self.box2box_transform.get_deltas(cell, target)
            loss_dfl = (_distribution_focal_loss(side, distance, self.box2box_transform.reg_max) * score).sum()
        return {
            "loss_cls": (loss_cls + correction.sum()) / count,
            "loss_box_reg": self.box_loss_weight * loss_box / weight,
            "loss_dfl": self.distribution_loss_weight * loss_dfl / weight,
        }

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Compute detections from the outputs of the head.

        Args:
            images: Batch of images, with their sizes before padding.
            features: Feature maps of each level, `N×C×H_l×W_l`.
            predictions: Logits `N×K×H_l×W_l` and distributions `N×(4·(reg_max + 1))×H_l×W_l` of each level.

        Returns:
            Detections of each image, with `pred_boxes` in pixels of the input, `scores` and `pred_classes`, ordered by
            descending score.

        Raises:
            NumericError: The predictions are NaN or infinite.
        """
        logits, sides = self._transpose(predictions)
        return self.detect(images, self.cells_of(self.build_anchors(features)), logits, sides)

    def cells_of(self, anchors: list[Boxes]) -> list[Boxes]:
        """Return squares at the centers of the anchors whose side is the stride, the unit of the distances.

        Args:
            anchors: Anchors of each level, `R_l×4`.

        Returns:
            Cells of each level, `R_l×4`.
        """
        cells = []
        for boxes, stride in zip(anchors, self.anchor_generator.strides, strict=True):
            centers = boxes.get_centers()
            cells.append(Boxes(torch.cat([centers - stride / 2, centers + stride / 2], dim=1)))
        return cells

    def _transpose(self, predictions: list[list[Tensor]]) -> list[list[Tensor]]:
        values = 4 * (self.box2box_transform.reg_max + 1)
        transposed: list[list[Tensor]] = self._transpose_dense_predictions(predictions, [self.num_classes, values])
        return transposed


def _quality_correction(logits: Tensor, quality: Tensor, beta: float) -> Tensor:
    """Return the quality focal loss of the matched class minus its loss as background (equation 2).

    Args:
        logits: Logits of the matched classes, `P`.
        quality: Their targets, the IoU of the predicted boxes, `P`.
        beta: Exponent, at least 0.
    """
    score = logits.sigmoid()
    matched = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return matched * (quality - score).abs().pow(beta) - F.softplus(logits) * score.pow(beta)


def _distribution_focal_loss(sides: Tensor, distances: Tensor, reg_max: int) -> Tensor:
    """Compute the distribution focal loss of each box, the mean of its four sides (equation 6).

    Args:
        sides: Logits `P×(4·(reg_max + 1))`.
        distances: Targets `P×4`. They are clamped to the range of the distributions.
        reg_max: Largest distance.
    """
    logits = sides.unflatten(1, (4, -1)).flatten(0, 1)
    target = distances.clamp(min=0, max=reg_max - _MARGIN).flatten()
    low = target.long()
    share = target - low
    loss = F.cross_entropy(logits, low, reduction="none") * (1 - share)
    loss = loss + F.cross_entropy(logits, low + 1, reduction="none") * share
    return loss.unflatten(0, (-1, 4)).mean(dim=1)
