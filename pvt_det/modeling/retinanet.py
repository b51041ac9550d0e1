"""RetinaNet (https://arxiv.org/abs/1708.02002) whose losses are exact on several GPUs and after resuming."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

from pvt_det.modeling.dense import DenseInference
from pvt_det.modeling.focal import dense_focal_loss
from pvt_det.modeling.registration import register
from pvt_det.modeling.targets import match_anchors

_EMA_START = 100.0
_EMA_MOMENTUM = 0.9


@register(META_ARCH_REGISTRY)
class PVTRetinaNet(DenseInference, RetinaNet):
    """Detectron2's RetinaNet with batched target matching and decoding, and with different losses.

    - Positive anchors, by whose number the losses are divided, are counted over all processes. So several processes
      compute the same losses as a single one with the whole batch. The divisor can be the number in the current batch
      (MMDetection) or its moving average (Detectron2).
    - The moving average is a buffer, `loss_normalizer`. It is saved with the weights, so that a resumed run continues
      exactly. Losses computed without gradients (on validation data) do not update it, and use their own count.
    - Losses are computed in fp32 under autocast, and the focal loss in chunks (`pvt_det.modeling.focal`).

    Args:
        loss_normalizer: Divisor of the losses: "ema" for a moving average of the number of positive anchors, or "batch"
            for the number in the current batch.
        **arguments: Arguments of Detectron2's RetinaNet.
    """

    @configurable
    def __init__(self, *, loss_normalizer: str = "ema", **arguments: Any) -> None:
        super().__init__(**arguments)
        assert loss_normalizer in ("ema", "batch"), loss_normalizer
        self.normalize_by = loss_normalizer
        self.register_buffer("loss_normalizer", torch.tensor(_EMA_START))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.RETINANET.LOSS_NORMALIZER` in addition to the keys that Detectron2 uses.

        Returns:
            Keyword arguments of the constructor.
        """
        return {**super().from_config(cfg), "loss_normalizer": cfg.MODEL.RETINANET.LOSS_NORMALIZER}

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compute the losses from the outputs of the head.

        Args:
            images: Batch of images. Not used.
            features: Feature maps of each level, `N×C×H_l×W_l`.
            predictions: Logits `N×(A·K)×H_l×W_l` of each level, and deltas `N×(A·4)×H_l×W_l` of each level.
            gt_instances: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Scalars "loss_cls" and "loss_box_reg".
        """
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.build_anchors(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Match the anchors with the boxes of each image, as Detectron2 does.

        Args:
            anchors: Anchors of each level, `R_l×4`.
            gt_instances: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Arguments `gt_labels` and `gt_boxes` of `losses`.
        """
        labels, boxes = match_anchors(Boxes.cat(anchors).tensor, gt_instances, self.anchor_matcher, self.num_classes)
        return list(labels), list(boxes)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Compute the focal loss and the box loss.

        Args:
            anchors: Anchors of each level, `R_l×4`.
            pred_logits: Logits of each level, `N×R_l×K`.
            gt_labels: Labels of the anchors of each image, `R`, where R is the sum of all R_l: a class 0 … K-1, K for
                background, or -1 to ignore.
            pred_anchor_deltas: Box deltas of each level, `N×R_l×4`.
            gt_boxes: Boxes matched with the anchors of each image, `R×4`.

        Returns:
            Scalars "loss_cls" and "loss_box_reg".
        """
        labels = torch.stack(gt_labels)
        positive = ((labels >= 0) & (labels != self.num_classes)).flatten().nonzero()[:, 0]
        normalizer = self._normalizer(len(positive), labels)
        all_anchors, deltas = Boxes.cat(anchors).tensor, torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1)
        with torch.autocast(labels.device.type, enabled=False):
            loss_cls = dense_focal_loss(pred_logits, labels, self.focal_loss_alpha, self.focal_loss_gamma)
            # Pass only the positive anchors, as a single image, because the function encodes a target for each anchor.
            loss_box_reg = _dense_box_regression_loss(
                [all_anchors[positive % len(all_anchors)]],
                self.box2box_transform,
                [deltas[positive].float()[None]],
                [torch.cat(gt_boxes)[positive]],
                torch.ones_like(positive, dtype=torch.bool)[None],
                box_reg_loss_type=self.box_reg_loss_type,
                smooth_l1_beta=self.smooth_l1_beta,
            )
        return {"loss_cls": loss_cls / normalizer, "loss_box_reg": loss_box_reg / normalizer}

    def _normalizer(self, num_positive: int, labels: Tensor) -> Tensor:
        """Compute the positive scalar by which this process divides its summed losses.

        Gradients are averaged over processes, so the count of the whole batch is divided by the number of processes.
        """
        get_event_storage().put_scalar("num_pos_anchors", num_positive / len(labels))
        count = torch.full((), float(num_positive), device=labels.device)
        if not torch.is_grad_enabled():
            # Do not reduce over processes here, because they can have different numbers of validation images.
            return count.clamp(min=1)
        world_size = comm.get_world_size()
        if world_size > 1:
            torch.distributed.all_reduce(count)
        count = count.clamp(min=1)
        if self.normalize_by == "ema":
            count = self.loss_normalizer * _EMA_MOMENTUM + count * (1 - _EMA_MOMENTUM)
            self.loss_normalizer.copy_(count)
        return count / world_size

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Compute detections from the outputs of the head.

        Args:
            images: Batch of images, with their sizes before padding.
            features: Feature maps of each level, `N×C×H_l×W_l`.
            predictions: Logits `N×(A·K)×H_l×W_l` of each level, and deltas `N×(A·4)×H_l×W_l` of each level.

        Returns:
            Detections of each image, with `pred_boxes` in pixels of the input, `scores` and `pred_classes`, ordered by
            descending score.

        Raises:
            NumericError: The predictions are NaN or infinite.
        """
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        return self.detect(images, self.build_anchors(features), logits, deltas)
