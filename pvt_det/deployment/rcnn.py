"""Faster, Mask and Cascade R-CNN as exportable graphs, without Detectron2's structures."""

from __future__ import annotations

import copy
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torch import Tensor, nn

from pvt_det.deployment.boxes import apply_deltas, best, clip, grid_anchors, not_empty, present, take
from pvt_det.deployment.image import Features
from pvt_det.deployment.suppression import ABSENT, Suppress
from pvt_det.errors import ConfigError
from pvt_det.modeling.cascade import PVTCascadeROIHeads
from pvt_det.modeling.pooling import Pool

Size = tuple[int, int]


class RCNNGraph(nn.Module):
    """An R-CNN from images to detections, with masks if the model has them.

    Args:
        model: A trained R-CNN. Its modules are shared, not copied.
        bgr: Whether the model takes BGR images.
        suppress: Function for non-maximum suppression, from `pvt_det.deployment.suppression`.

    Raises:
        ConfigError: The model has heads other than box and mask heads.
    """

    def __init__(self, model: GeneralizedRCNN, *, bgr: bool, suppress: Suppress) -> None:
        super().__init__()
        heads = model.roi_heads
        if not isinstance(model.proposal_generator, RPN) or not isinstance(heads, StandardROIHeads):
            raise ConfigError(
                f"R-CNN with {type(heads).__name__} cannot be exported. Expected Detectron2's standard heads."
            )
        if heads.keypoint_on:
            raise ConfigError("MODEL.KEYPOINT_ON = True: an R-CNN with keypoints cannot be exported.")
        self.features = Features(model, bgr=bgr)
        self.proposals = Proposals(model.proposal_generator, suppress)
        self.boxes = BoxHead(heads, suppress)
        self.masks = MaskHead(heads) if heads.mask_on else None
        self.outputs = ("boxes", "scores", "labels", "images", *(("masks",) if heads.mask_on else ()))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            image: Images `N×3×H×W`, RGB, uint8.

        Returns:
            Boxes `D×4` (x0, y0, x1, y1) in pixels, scores `D`, labels `D` (int64, from 0), and image indices in the
            batch `D` (int64). For models with masks also masks `D×28×28`: probabilities 0 … 1 over the box. Detections
            are sorted by image, then by descending score.
        """
        return self.detect(self.features(image), (image.shape[2], image.shape[3]))

    def detect(self, maps: dict[str, Tensor], size: Size) -> tuple[Tensor, ...]:
        """Detect objects in feature maps.

        Args:
            maps: Feature maps by name, `N×C×H×W`.
            size: Height and width of the images in pixels.

        Returns:
            What `forward` returns.
        """
        boxes, scores = self.proposals(maps, size)
        boxes, scores, labels, images = self.boxes(maps, boxes, scores, size)
        detections = (boxes, scores, labels, images)
        return detections if self.masks is None else (*detections, self.masks(maps, *detections))


class Proposals(nn.Module):
    """The region proposal network.

    Args:
        rpn: A trained RPN. Its modules are shared, not copied.
        suppress: Function for non-maximum suppression, from `pvt_det.deployment.suppression`.
    """

    def __init__(self, rpn: RPN, suppress: Suppress) -> None:
        super().__init__()
        self.suppress = suppress
        self.names = list(rpn.in_features)
        self.head = rpn.rpn_head
        self.cell_anchors = rpn.anchor_generator.cell_anchors
        self.strides, self.offset = list(rpn.anchor_generator.strides), rpn.anchor_generator.offset
        self.transform = rpn.box2box_transform
        self.iou_threshold, self.min_side = rpn.nms_thresh, rpn.min_box_size
        self.candidates, self.limit = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]

    def forward(self, maps: dict[str, Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Propose boxes.

        Args:
            maps: Feature maps by name, `N×C×H×W`.
            size: Height and width of the images in pixels.

        Returns:
            Boxes `N×P×4` in pixels and their scores `N×P`, padded with `ABSENT` if an image has fewer.
        """
        features = [maps[name] for name in self.names]
        logits, deltas = self.head(features)
        inputs = zip(features, logits, deltas, self.cell_anchors, self.strides, strict=True)
        levels = [self._level(*level, size) for level in inputs]
        boxes, scores = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        scores, index = best(scores, self.limit)
        return take(boxes, index), scores

    def _level(
        self, feature: Tensor, logits: Tensor, deltas: Tensor, cell: Tensor, stride: int, size: Size
    ) -> tuple[Tensor, Tensor]:
        anchors = grid_anchors(feature, cell, stride, self.offset)
        scores, index = best(logits.permute(0, 2, 3, 1).flatten(1), self.candidates)
        deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        boxes = clip(apply_deltas(self.transform, take(deltas, index), anchors[index]), *size)
        scores = torch.where(not_empty(boxes, self.min_side), scores, ABSENT)
        kept = self.suppress(boxes, scores[:, None], self.iou_threshold, self.limit)[:, 0]
        return boxes, torch.where(kept, scores, ABSENT)


class BoxHead(nn.Module):
    """Classifies proposals and refines their boxes, in several stages for a cascade.

    Args:
        heads: Trained ROI heads. Their weights are shared, not copied.
        suppress: Function for non-maximum suppression, from `pvt_det.deployment.suppression`.

    Raises:
        ConfigError: A predictor uses sigmoid cross-entropy.
    """

    def __init__(self, heads: StandardROIHeads, suppress: Suppress) -> None:
        super().__init__()
        self.suppress = suppress
        self.pool = Pool(heads.box_pooler, list(heads.box_in_features))
        cascade = isinstance(heads, CascadeROIHeads)
        self.heads = _traceable(heads.box_head if cascade else nn.ModuleList([heads.box_head]))
        self.predictors = nn.ModuleList(heads.box_predictor if cascade else [heads.box_predictor])
        # Detectron2's CascadeROIHeads average probabilities.
        self.averages_logits = isinstance(heads, PVTCascadeROIHeads)
        last: Any = self.predictors[-1]
        if any(predictor.use_sigmoid_ce for predictor in self.predictors):
            raise ConfigError("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True: such a model cannot be exported.")
        # Annotated because attributes of modules have no static type.
        self.num_classes: int = heads.num_classes
        self.score_threshold: float = last.test_score_thresh
        self.iou_threshold: float = last.test_nms_thresh
        self.limit: int = last.test_topk_per_image

    def forward(
        self, maps: dict[str, Tensor], proposals: Tensor, scores: Tensor, size: Size
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turn proposals into detections.

        Args:
            maps: Feature maps by name, `N×C×H×W`.
            proposals: Boxes `N×P×4`, corners in pixels.
            scores: Scores of the proposals `N×P`, `ABSENT` for padding.
            size: Height and width of the images in pixels.

        Returns:
            Boxes `D×4` in pixels, scores `D`, labels `D` and image indices `D`.
        """
        images, position = present(scores)
        boxes, scores = self._predict(maps, proposals[images, position], images, size)

        # Back to a table with a row per image and class, because suppression works within each of them.
        number, places, classes = proposals.shape[0], proposals.shape[1], self.num_classes
        scores = torch.where(scores > self.score_threshold, scores, ABSENT)
        by_class = scores.new_full((number, places, classes), ABSENT).index_put((images, position), scores).mT
        table = boxes.new_zeros((number, places, classes, 4)).index_put((images, position), boxes).transpose(1, 2)
        kept = self.suppress(table.flatten(0, 1), by_class.flatten(0, 1)[:, None], self.iou_threshold, self.limit)
        by_class = torch.where(kept.view_as(by_class), by_class, ABSENT).flatten(1)
        scores, index = best(by_class, self.limit)
        boxes, labels = take(table.flatten(1, 2), index), index // places

        images, position = present(torch.where(not_empty(boxes), scores, ABSENT))
        return boxes[images, position], scores[images, position], labels[images, position], images

    def _predict(self, maps: dict[str, Tensor], boxes: Tensor, images: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Return clipped boxes `R×K×4` and class probabilities `R×K`, without background."""
        stage_logits: list[Tensor] = []
        for head, predictor in zip(self.heads, self.predictors, strict=True):
            logits, deltas = predictor(head(self.pool(maps, boxes, images)))
            stage_logits.append(logits)
            deltas = deltas.unflatten(1, (-1, 4))
            # Before the last stage of a cascade, a proposal moves by the deltas of its class.
            if len(stage_logits) < len(self.heads) and deltas.shape[1] > 1:
                deltas = take(deltas, logits[:, :-1].argmax(dim=1, keepdim=True))
            moved = clip(apply_deltas(predictor.box2box_transform, deltas, boxes[:, None]), *size)
            boxes = moved[:, 0]
        stacked = torch.stack(stage_logits)
        scores = stacked.mean(dim=0).softmax(dim=-1) if self.averages_logits else stacked.softmax(dim=-1).mean(dim=0)
        return moved.expand(-1, self.num_classes, -1), scores[:, :-1]


class MaskHead(nn.Module):
    """Predicts the masks of detections, as the average of several mask heads for a cascade.

    Args:
        heads: Trained ROI heads with mask heads. Their weights are shared, not copied.
    """

    def __init__(self, heads: StandardROIHeads) -> None:
        super().__init__()
        self.pool = Pool(heads.mask_pooler, list(heads.mask_in_features))
        several = isinstance(heads.mask_head, nn.ModuleList)
        self.heads = _traceable(heads.mask_head if several else nn.ModuleList([heads.mask_head]))

    def forward(self, maps: dict[str, Tensor], boxes: Tensor, scores: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """Predict masks.

        Args:
            maps: Feature maps by name, `N×C×H×W`.
            boxes: Boxes `D×4`, corners in pixels.
            scores: Scores `D`; not used.
            labels: Labels `D`, int64.
            images: Image index of each box, `D`.

        Returns:
            Mask probabilities `D×28×28` over each box.
        """
        pooled = self.pool(maps, boxes, images)
        heads: Any = self.heads
        return torch.stack([_of_class(head.layers(pooled), labels).sigmoid() for head in heads]).mean(dim=0)


class _Affine(nn.Module):
    """A BatchNorm in evaluation mode, as operations that can be traced for any number of boxes.

    Args:
        norm: The BatchNorm. It is shared, not copied.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def _traceable(heads: nn.ModuleList) -> nn.ModuleList:
    """Replace the BatchNorms of heads by `_Affine`, in copies that share the weights.

    `torch.export` would check that a BatchNorm's input is not empty, but the number of boxes depends on the image.
    """
    norms = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
    shared = {id(tensor): tensor for tensor in (*heads.parameters(), *heads.buffers())}
    copied = copy.deepcopy(heads, shared)
    for conv in copied.modules():
        if isinstance(conv, Conv2d) and isinstance(conv.norm, norms):
            conv.norm = _Affine(conv.norm)
    return copied


def _of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the masks `D×h×w` of the labels `D`. `logits` has one mask per class, or a class-agnostic one."""
    index = labels if logits.shape[1] > 1 else torch.zeros_like(labels)
    index = index[:, None, None, None].expand(-1, 1, *logits.shape[2:])
    return logits.gather(1, index)[:, 0]
