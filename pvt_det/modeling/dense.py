"""What the one-stage detectors share: RetinaNet, ATSS and GFL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers.nms import batched_nms
from detectron2.modeling import Backbone, build_anchor_generator, build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from pvt_det.modeling.atss_assigner import select_anchors
from pvt_det.modeling.decoding import BoxTransform, decode
from pvt_det.modeling.finite import require_finite
from pvt_det.modeling.towers import TowerHead


class DenseInference:
    """Mixin of a dense detector of Detectron2: its anchors, and its detections from the outputs of the head.

    Everything after the head is computed in fp32, because in bf16 scores would tie and boxes would be off by pixels.
    """

    anchor_generator: nn.Module
    box2box_transform: BoxTransform
    test_score_thresh: float
    test_topk_candidates: int
    test_nms_thresh: float
    max_detections_per_image: int

    def build_anchors(self, features: list[Tensor]) -> list[Boxes]:
        """Generate the anchors on the device of the feature maps.

        Args:
            features: Feature maps of each level, `N×C×H_l×W_l`.

        Returns:
            Anchors of each level, `R_l×4`, in pixels of the input.
        """
        # Detectron2 creates the grid on the CPU and copies it to the GPU, which synchronizes twice per level. Anchors
        # are cheap to recompute for each batch: 1 ms for 800×1216 pixels on one CPU core.
        with features[0].device:
            anchors: list[Boxes] = self.anchor_generator(features)
        return anchors

    def detect(
        self,
        images: ImageList,
        anchors: Sequence[Boxes],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        centerness: Sequence[Tensor] | None = None,
    ) -> list[Instances]:
        """Decode the outputs of the head, and apply non-maximum suppression within each class.

        Args:
            images: Batch of images, with their sizes before padding.
            anchors: Anchors of each level, `R_l×4`.
            logits: Logits of each level, `N×R_l×K`.
            deltas: Values from which `box2box_transform` computes the boxes of each level, `N×R_l×B`.
            centerness: Logits of the centerness of each level, `N×R_l×1`, whose sigmoid is multiplied with the scores.

        Returns:
            Detections of each image, with `pred_boxes` in pixels of the input, `scores` and `pred_classes`, ordered by
            descending score.

        Raises:
            NumericError: The predictions are NaN or infinite.
        """
        require_finite([*logits, *deltas, *(centerness or ())], "scores or boxes")
        candidates = decode(
            logits,
            deltas,
            [boxes.tensor for boxes in anchors],
            self.box2box_transform,
            centerness=centerness,
            threshold=self.test_score_thresh,
            limit=self.test_topk_candidates,
        )
        return [self._suppress(*found, size) for found, size in zip(candidates, images.image_sizes, strict=True)]

    def _suppress(self, boxes: Tensor, scores: Tensor, classes: Tensor, size: tuple[int, int]) -> Instances:
        # Run NMS per image. Offsetting the coordinates of each image, as for classes, would round boxes too much.
        kept = batched_nms(boxes, scores, classes, self.test_nms_thresh)[: self.max_detections_per_image]
        return Instances(size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept])


class AdaptiveDetector(DenseInference, DenseDetector):
    """Base class of ATSS and GFL: one square anchor per position, matched by adaptive training sample selection.

    Args:
        num_classes: Number of classes, K.
        anchor_generator: Generator of one anchor per position.
        box2box_transform: Transform that computes boxes from anchors and the outputs of the head.
        anchor_candidates: Number of anchors per box and level that can become positive.
        box_loss_weight: Weight of the GIoU loss.
        test_score_thresh: Smallest class score of a detection, in [0, 1).
        test_topk_candidates: Maximum number of candidates per level that enter non-maximum suppression.
        test_nms_thresh: IoU above which non-maximum suppression removes the lower score, in (0, 1].
        max_detections_per_image: Maximum number of detections per image.
        input_format: Order of the channels, "RGB" or "BGR".
        **arguments: Arguments of Detectron2's DenseDetector.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        anchor_generator: nn.Module,
        box2box_transform: BoxTransform,
        anchor_candidates: int,
        box_loss_weight: float,
        test_score_thresh: float,
        test_topk_candidates: int,
        test_nms_thresh: float,
        max_detections_per_image: int,
        input_format: str,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_candidates = anchor_candidates
        self.box_loss_weight = box_loss_weight
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format

    @staticmethod
    def shared_arguments(cfg: CfgNode, section: CfgNode) -> dict[str, Any]:
        """Read the arguments of the base class from the config, except for the head and the transform.

        Args:
            cfg: Complete config.
            section: Its section MODEL.ATSS or MODEL.GFL.

        Returns:
            Keyword arguments of the constructor.
        """
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in section.IN_FEATURES]
        return {
            "backbone": backbone,
            "head_in_features": section.IN_FEATURES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "num_classes": section.NUM_CLASSES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_candidates": section.ANCHOR_CANDIDATES,
            "box_loss_weight": section.BOX_LOSS_WEIGHT,
            "test_score_thresh": section.SCORE_THRESH_TEST,
            "test_topk_candidates": section.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": section.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "input_format": cfg.INPUT.FORMAT,
        }

    @staticmethod
    def build_head(section: CfgNode, backbone: Backbone, *, box_channels: int, centerness: bool = False) -> TowerHead:
        """Build the head.

        Args:
            section: Section MODEL.ATSS or MODEL.GFL of the config.
            backbone: The backbone.
            box_channels: Number of values that describe a box.
            centerness: Whether to predict the centerness of each box as well.
        """
        levels = section.IN_FEATURES
        return TowerHead(
            channels=backbone.output_shape()[levels[0]].channels,
            num_levels=len(levels),
            num_classes=section.NUM_CLASSES,
            box_channels=box_channels,
            num_convs=section.NUM_CONVS,
            norm=section.NORM,
            prior_prob=section.PRIOR_PROB,
            centerness=centerness,
        )

    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances], images: ImageList
    ) -> tuple[Tensor, Tensor]:
        """Match the anchors with the boxes of each image.

        Args:
            anchors: Anchors of each level, `R_l×4`.
            gt_instances: Ground truth of each image, with `gt_boxes` and `gt_classes`.
            images: Batch of images, with their sizes before padding.

        Returns:
            Labels `N×R`, where R is the sum of all R_l: a class 0 … K-1, K for background, or -1 for anchors in the
            padding of the batch. And matched boxes `N×R×4`.
        """
        # An image is padded to the strides of the feature maps even if it is alone in its batch.
        divisor = max(self.backbone.size_divisibility, 1)
        sizes = [(_round_up(height, divisor), _round_up(width, divisor)) for height, width in images.image_sizes]
        return select_anchors(
            [boxes.tensor for boxes in anchors],
            gt_instances,
            sizes,
            topk=self.anchor_candidates,
            background=self.num_classes,
        )

    def find_positive(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Find the positive anchors, and count those by which the losses are divided.

        Args:
            labels: Labels `N×R`.

        Returns:
            Indices of the positive anchors in the flattened labels, and their number, a scalar. As in MMDetection, an
            image without any counts as one.
        """
        is_positive = (labels >= 0) & (labels != self.num_classes)
        positive = is_positive.flatten().nonzero()[:, 0]
        get_event_storage().put_scalar("num_pos_anchors", len(positive) / len(labels))
        return positive, is_positive.sum(dim=1).clamp(min=1).sum().float()


def loss_divisors(*sums: Tensor) -> Tensor:
    """Return the divisors with which several processes compute the mean losses of the whole batch.

    Losses without gradients, on validation data, use the sums of their own process, because processes can have
    different numbers of validation images.

    Args:
        sums: Sums over the images of this process, scalars that are at least 0. Totals below 1 count as 1.

    Returns:
        Totals over all processes, divided by the number of processes, in one tensor.
    """
    totals = torch.stack(sums).detach()
    world_size = comm.get_world_size() if torch.is_grad_enabled() else 1
    if world_size > 1:
        torch.distributed.all_reduce(totals)
    return totals.clamp(min=1) / world_size


def _round_up(length: int, divisor: int) -> int:
    return -(-length // divisor) * divisor
