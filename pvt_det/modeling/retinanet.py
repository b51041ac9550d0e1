"""RetinaNet (https://arxiv.org/abs/1708.02002) as Detectron2 has it, with the loss made exact to resume and share."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers.nms import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

from pvt_det.modeling.decoding import decode
from pvt_det.modeling.finite import require_finite
from pvt_det.modeling.focal import dense_focal_loss
from pvt_det.modeling.registration import register
from pvt_det.modeling.targets import match_anchors

_EMA_START = 100.0
_EMA_MOMENTUM = 0.9


@register(META_ARCH_REGISTRY)
class PVTRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, but for how its losses are computed, and with a batch's images worked on together.

    - The number that the losses are divided by is counted over all processes, so that several of them compute what one
      would with the whole batch; it can be the batch's own (MMDetection), not only Detectron2's moving average.
    - The moving average is a buffer, `loss_normalizer`: it is saved with the weights, and a resumed run goes on
      exactly. Losses computed without gradients (on validation data) leave it alone and use their own count.
    - The losses are computed in fp32 under autocast, and the focal loss in parts (`pvt_det.modeling.focal`).

    Args:
        loss_normalizer: "ema", a moving average of the number of positive anchors, or "batch", their number now.
        arguments: Those of Detectron2's RetinaNet.
    """

    @configurable
    def __init__(self, *, loss_normalizer: str = "ema", **arguments: Any) -> None:
        super().__init__(**arguments)
        assert loss_normalizer in ("ema", "batch"), loss_normalizer
        self.normalize_by = loss_normalizer
        self.register_buffer("loss_normalizer", torch.tensor(_EMA_START))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Detectron2's arguments and `MODEL.RETINANET.LOSS_NORMALIZER`."""
        return {**super().from_config(cfg), "loss_normalizer": cfg.MODEL.RETINANET.LOSS_NORMALIZER}

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compute the losses of the head's outputs; arguments as of `forward_inference`, and what is in the images."""
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        anchors = self.build_anchors(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def build_anchors(self, features: list[Tensor]) -> list[Boxes]:
        """Generate each level's anchors, `R_l×4`, for maps `N×C×H_l×W_l`, on the maps' device."""
        # Detectron2 makes places on the CPU and has a GPU take them, which is waited for twice a level. They are cheap
        # enough to be made anew each time: 1 ms for 800x1216 on one core of a CPU.
        with features[0].device:
            anchors: list[Boxes] = self.anchor_generator(features)
        return anchors

    def label_anchors(self, anchors: list[Boxes], gt_instances: list[Instances]) -> tuple[list[Tensor], list[Tensor]]:
        """Match the anchors with the boxes of each image, as Detectron2 does.

        Args:
            anchors: Each level's, `R_l×4`.
            gt_instances: Each image's `gt_boxes` and `gt_classes`.

        Returns:
            `gt_labels` and `gt_boxes` of `losses`.
        """
        matched = match_anchors(Boxes.cat(anchors).tensor, gt_instances, self.anchor_matcher, self.num_classes)
        labels, boxes = (list(of_images) for of_images in matched)
        return labels, boxes

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
            anchors: Each level's, `R_l×4`.
            pred_logits: Each level's, `N×R_l×K`.
            gt_labels: Each image's, `R`: 0 … K-1, K for background, -1 to ignore; R is the sum of all R_l.
            pred_anchor_deltas: Each level's, `N×R_l×4`.
            gt_boxes: Each image's, `R×4`: the box that each anchor is matched with.

        Returns:
            "loss_cls" and "loss_box_reg", scalars.
        """
        labels = torch.stack(gt_labels)
        positive = ((labels >= 0) & (labels != self.num_classes)).flatten().nonzero()[:, 0]
        normalizer = self._normalizer(len(positive), labels)
        all_anchors, deltas = Boxes.cat(anchors).tensor, torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1)
        with torch.autocast(labels.device.type, enabled=False):
            loss_cls = dense_focal_loss(pred_logits, labels, self.focal_loss_alpha, self.focal_loss_gamma)
            # The positive anchors alone, as if one image's: it computes the target of every anchor that it is given.
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
        """What this process divides its summed losses by, a scalar above 0 on the device of the labels `N×R`.

        Gradients are averaged over processes, hence the whole batch's count is shared out equally.
        """
        get_event_storage().put_scalar("num_pos_anchors", num_positive / len(labels))
        count = torch.full((), float(num_positive), device=labels.device)
        if not torch.is_grad_enabled():
            # Processes need not be in step here: each has its own number of validation images.
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
        """Detect; autocast ends at the head's outputs, since scores in bf16 would tie, and boxes be off by pixels.

        Args:
            images: The batch, its sizes before padding.
            features: The maps that the head has seen.
            predictions: Its logits `N×(A·K)×H_l×W_l` and deltas `N×(A·4)×H_l×W_l`, level by level.

        Returns:
            Each image's `pred_boxes`, `scores` and `pred_classes`, from its highest score down, in pixels of the input.

        Raises:
            NumericError: The predictions are not finite.
        """
        logits, deltas = self._transpose_dense_predictions(predictions, [self.num_classes, 4])
        require_finite([*logits, *deltas], "scores or boxes")
        candidates = decode(
            logits,
            deltas,
            [boxes.tensor for boxes in self.build_anchors(features)],
            self.box2box_transform,
            threshold=self.test_score_thresh,
            limit=self.test_topk_candidates,
        )
        return [self._suppress(*of_image, size) for of_image, size in zip(candidates, images.image_sizes, strict=True)]

    def _suppress(self, boxes: Tensor, scores: Tensor, classes: Tensor, size: tuple[int, int]) -> Instances:
        # Not all images together: told apart by their coordinates, as classes are, boxes would be rounded by too much.
        kept = batched_nms(boxes, scores, classes, self.test_nms_thresh)[: self.max_detections_per_image]
        return Instances(size, pred_boxes=Boxes(boxes[kept]), scores=scores[kept], pred_classes=classes[kept])
