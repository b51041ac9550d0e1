"""Cascade R-CNN (https://arxiv.org/abs/1712.00726) as in MMDetection, with which the published models were trained."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.modeling.registration import register
from pvt_det.modeling.roi_heads import Fp32Pooling


@register(ROI_HEADS_REGISTRY)
class PVTCascadeROIHeads(Fp32Pooling, CascadeROIHeads):
    """MMDetection's CascadeRoIHead: several stages, each with a box head and a mask head.

    It differs from Detectron2's CascadeROIHeads as follows:

    - Every stage samples RoIs, as Faster R-CNN does, and has a mask head that is trained on them.
    - The losses of each stage have a weight. Gradients are not scaled.
    - Boxes may be predicted per class. A RoI moves by the deltas of its class. If it is background or its class is not
      known, it moves by those of the object class with the highest score.
    - Scores are averaged before the softmax, mask probabilities after the sigmoid.

    Args:
        loss_weights: Weight of the losses of each stage.
        **arguments: Arguments of Detectron2's CascadeROIHeads. `mask_head` is a `ModuleList` with a head per stage.
    """

    @configurable
    def __init__(self, *, loss_weights: list[float], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.loss_weights = loss_weights

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS` in addition to the keys that Detectron2
                uses.
            input_shape: Channels and strides of the feature maps, by name.

        Returns:
            Keyword arguments of the constructor.

        Raises:
            ConfigError: Low-quality matches are enabled. No published cascade uses them.
        """
        if cfg.MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES:
            raise ConfigError(
                "MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES: not supported by Cascade R-CNN. Set it to False."
            )
        loss_weights = list(cfg.MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS)
        return {**super().from_config(cfg, input_shape), "loss_weights": loss_weights}

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        # Detectron2's CascadeROIHeads would refuse boxes per class, hence its base class.
        build = super(CascadeROIHeads, cls)._init_box_head
        cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        stages = [build(cfg, input_shape) for _ in cascade.IOUS]
        for stage, weights in zip(stages, cascade.BBOX_REG_WEIGHTS, strict=True):
            stage["box_predictor"].box2box_transform = Box2BoxTransform(weights=weights)
        return {
            "box_in_features": stages[0]["box_in_features"],
            "box_pooler": stages[0]["box_pooler"],
            "box_heads": [stage["box_head"] for stage in stages],
            "box_predictors": [stage["box_predictor"] for stage in stages],
            "proposal_matchers": [Matcher([iou], [0, 1]) for iou in cascade.IOUS],
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        build = super()._init_mask_head
        stages = [build(cfg, input_shape) for _ in cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS]
        return {**stages[0], "mask_head": nn.ModuleList(stage["mask_head"] for stage in stages)}

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances], stage: int = 0
    ) -> list[Instances]:
        """Match proposals with the ground truth, and sample those that a stage is trained on.

        Args:
            proposals: Proposals of each image, with `proposal_boxes`.
            targets: Ground truth of each image. The field `is_truth` is added to it.
            stage: Index of the stage.

        Returns:
            The samples of each image, with the fields that Detectron2 adds, and `is_truth`: whether a sample is one of
            the ground-truth boxes that `ROI_HEADS.PROPOSAL_APPEND_GT` adds to the proposals.
        """
        for each, truth in zip(proposals, targets, strict=True):
            each.is_truth = torch.zeros(len(each), dtype=torch.bool, device=each.proposal_boxes.device)
            truth.is_truth = torch.ones(len(truth), dtype=torch.bool, device=each.proposal_boxes.device)
        # The matcher that the base class uses.
        self.proposal_matcher = self.proposal_matchers[stage]
        with get_event_storage().name_scope(f"stage{stage}"):
            return super().label_and_sample_proposals(proposals, targets)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances], targets: Any = None) -> Any:
        """Run all stages, with their mask heads in training.

        Args:
            features: Feature maps by name, `N×C×H_l×W_l`.
            proposals: Samples of the first stage (training) or proposals (inference) of each image.
            targets: Ground truth of each image. Only needed in training.

        Returns:
            The losses of all stages by name (training), or the detections of each image without masks (inference).
        """
        maps = [features[name] for name in self.box_in_features]
        losses: dict[str, Tensor] = {}
        stage_scores = []
        for stage in range(self.num_cascade_stages):
            scores, deltas = self._run_stage(maps, proposals, stage)
            stage_scores.append(scores)
            if self.training:
                losses |= self._stage_losses(features, proposals, scores, deltas, stage)
            if stage + 1 < self.num_cascade_stages:
                proposals = self._refine(proposals, scores, deltas, stage)
                if self.training:
                    proposals = self.label_and_sample_proposals(proposals, targets, stage + 1)
        if self.training:
            return losses
        mean = torch.stack(stage_scores).mean(dim=0)
        return self.box_predictor[-1].inference((mean, deltas), proposals)[0]

    def _run_stage(self, features: list[Tensor], proposals: list[Instances], stage: int) -> tuple[Tensor, Tensor]:
        """Return scores `R×(K+1)` and box deltas `R×4K` (`R×4` if classes share a box) of the RoIs of all images."""
        pooled = self.box_pooler(features, [each.proposal_boxes for each in proposals])
        number = len(pooled)
        if self.training and number == 0:
            # Detectron2's convolutions with SyncBatchNorm refuse an empty batch.
            pooled = pooled.new_zeros(1, *pooled.shape[1:])
        scores, deltas = self.box_predictor[stage](self.box_head[stage](pooled))
        return scores[:number], deltas[:number]

    def _stage_losses(
        self, features: dict[str, Tensor], samples: list[Instances], scores: Tensor, deltas: Tensor, stage: int
    ) -> dict[str, Tensor]:
        with get_event_storage().name_scope(f"stage{stage}"):
            losses = self.box_predictor[stage].losses((scores, deltas), samples)
            if self.mask_on:
                objects, _ = select_foreground_proposals(samples, self.num_classes)
                pooled = self._pool_masks(features, [each.proposal_boxes for each in objects])
                losses |= self.mask_head[stage](pooled, objects)
        return {f"{name}_stage{stage}": self.loss_weights[stage] * loss for name, loss in losses.items()}

    @torch.no_grad()
    def _refine(self, proposals: list[Instances], scores: Tensor, deltas: Tensor, stage: int) -> list[Instances]:
        """Return the proposals of the next stage: the boxes of a stage, without those of the ground truth."""
        classes = scores[:, :-1].argmax(dim=1)
        if self.training:
            labels = torch.cat([each.gt_classes for each in proposals])
            classes = torch.where(labels < self.num_classes, labels, classes)
        deltas = deltas.unflatten(1, (-1, 4))
        is_per_class = deltas.shape[1] > 1
        rows = torch.arange(len(deltas), device=deltas.device)
        deltas = deltas[rows, classes if is_per_class else 0]
        boxes = torch.cat([each.proposal_boxes.tensor for each in proposals])
        moved = self.box_predictor[stage].box2box_transform.apply_deltas(deltas, boxes)
        refined = []
        for each, tensor in zip(proposals, moved.split([len(each) for each in proposals]), strict=True):
            after = Instances(each.image_size, proposal_boxes=Boxes(tensor))
            after.proposal_boxes.clip(each.image_size)
            if self.training:
                # Detectron2 needs the logits to add the ground truth again.
                after.objectness_logits = each.objectness_logits
                after = after[~each.is_truth]
            refined.append(after)
        return refined

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        """Add `pred_masks` to detections: the average of the probabilities that the mask heads predict.

        Args:
            features: Feature maps by name, `N×C×H_l×W_l`.
            instances: Detections of each image, with `pred_boxes` and `pred_classes`. In training, not used.

        Returns:
            The detections. In training, no losses, because `_forward_box` returns them.
        """
        if self.training:
            return {}
        if not self.mask_on:
            return instances
        pooled = self._pool_masks(features, [each.pred_boxes for each in instances])
        stages = [[each.pred_masks for each in head(pooled, instances)] for head in self.mask_head]
        for each, masks in zip(instances, zip(*stages, strict=True), strict=True):
            each.pred_masks = torch.stack(masks).mean(dim=0)
        return instances

    def _pool_masks(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        return self.mask_pooler([features[name] for name in self.mask_in_features], boxes)
