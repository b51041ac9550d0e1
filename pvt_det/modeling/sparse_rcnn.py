"""Sparse R-CNN (https://arxiv.org/abs/2011.12450) on an FPN over any trunk."""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from pvt_det.modeling.pooling import Pool
from pvt_det.modeling.query_detector import QueryDetector
from pvt_det.modeling.registration import register
from pvt_det.modeling.set_losses import SetLosses

# Factors of the box deltas dx, dy, dw and dh.
_DELTA_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
# Probability of each class at the start.
_PRIOR = 0.01


@register(META_ARCH_REGISTRY)
class PVTSparseRCNN(QueryDetector):
    """Sparse R-CNN: learned proposals, each a box and a feature vector, that several stages refine.

    Args:
        num_proposals: Number of proposals, Q.
        num_stages: Number of stages, L.
        num_heads: Heads of the attention between proposals.
        feedforward_dim: Channels of the hidden layers of the MLPs.
        dynamic_dim: Channels between the two layers of a dynamic head.
        dropout: Dropout rate, in [0, 1).
        pooler_resolution: Side of the pooled features of a box, S.
        pooler_sampling_ratio: Samples of ROIAlign per bin and axis; 0 adapts them to the size of the box.
        set_losses: Matching and losses.
        **arguments: Arguments of `QueryDetector`. All feature maps must have the same number of channels, C.
    """

    @configurable
    def __init__(
        self,
        *,
        num_proposals: int,
        num_stages: int,
        num_heads: int,
        feedforward_dim: int,
        dynamic_dim: int,
        dropout: float,
        pooler_resolution: int,
        pooler_sampling_ratio: int,
        set_losses: SetLosses,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        shapes = [self.backbone.output_shape()[name] for name in self.in_features]
        dim = shapes[0].channels
        self.set_losses = set_losses
        self.pool = Pool(
            ROIPooler(pooler_resolution, [1 / shape.stride for shape in shapes], pooler_sampling_ratio, "ROIAlignV2"),
            self.in_features,
        )
        self.proposal_boxes = nn.Embedding(num_proposals, 4)
        self.proposal_features = nn.Embedding(num_proposals, dim)
        self.stages = nn.ModuleList(
            Stage(dim, self.num_classes, num_heads, feedforward_dim, dynamic_dim, pooler_resolution, dropout)
            for _ in range(num_stages)
        )
        # All proposals start as the whole image.
        with torch.no_grad():
            self.proposal_boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.SPARSE_RCNN`, and the keys of the backbone.

        Returns:
            Keyword arguments of the constructor.
        """
        head = cfg.MODEL.SPARSE_RCNN
        return {
            **cls.common_arguments(cfg, "SPARSE_RCNN"),
            "num_proposals": head.NUM_PROPOSALS,
            "num_stages": head.NUM_STAGES,
            "num_heads": head.NUM_HEADS,
            "feedforward_dim": head.FEEDFORWARD_DIM,
            "dynamic_dim": head.DYNAMIC_DIM,
            "dropout": head.DROPOUT,
            "pooler_resolution": head.POOLER_RESOLUTION,
            "pooler_sampling_ratio": head.POOLER_SAMPLING_RATIO,
            "set_losses": SetLosses(
                class_weight=head.CLASS_WEIGHT,
                l1_weight=head.L1_WEIGHT,
                giou_weight=head.GIOU_WEIGHT,
                background_weight=None,
                l1_format="xyxy",
            ),
        }

    def predict(self, features: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the logits and boxes of the last stage.

        Args:
            features: Feature maps, `N×C×H_l×W_l`.
            sizes: Sizes of the images without padding, `N×4` as (width, height, width, height) in pixels.

        Returns:
            Logits `N×Q×K`, and boxes `N×Q×4` as (x0, y0, x1, y1) in pixels.
        """
        logits, boxes = self._predict_stages(features, sizes)
        return logits[-1], boxes[-1]

    def losses(self, features: list[Tensor], sizes: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        """Compute the losses of all stages.

        Args:
            features: Feature maps, `N×C×H_l×W_l`.
            sizes: Sizes of the images without padding, `N×4` as (width, height, width, height) in pixels.
            targets: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Scalars "loss_cls" (focal), "loss_box_reg" (L1) and "loss_giou".
        """
        logits, boxes = self._predict_stages(features, sizes)
        return self.set_losses(torch.stack(logits), torch.stack(boxes), sizes, targets)

    def _predict_stages(self, features: list[Tensor], sizes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the logits `N×Q×K` and boxes `N×Q×4` of each stage."""
        maps = dict(zip(self.in_features, features, strict=True))
        number, places = sizes.shape[0], self.proposal_boxes.num_embeddings
        boxes = box_convert(self.proposal_boxes.weight, "cxcywh", "xyxy") * sizes[:, None]
        images = torch.arange(number, device=sizes.device)[:, None].expand(-1, places).flatten()
        # A copy, because PyTorch's counter of operations fails on modules that take a view of a parameter.
        vectors = self.proposal_features.weight.repeat(number, 1, 1)
        all_logits, all_boxes = [], []
        for stage in self.stages:
            pooled = self.pool(maps, boxes.detach().flatten(0, 1), images)
            logits, boxes, vectors = stage(vectors, pooled, boxes)
            all_logits.append(logits)
            all_boxes.append(boxes)
            # As in Cascade R-CNN, a stage is not trained through the boxes of the next one.
            boxes = boxes.detach()
        return all_logits, all_boxes


class Stage(nn.Module):
    """A stage of Sparse R-CNN: attention between proposals, dynamic head, MLP, and the classes and boxes.

    Args:
        dim: Channels, C.
        num_classes: Number of classes, K.
        num_heads: Heads of the attention.
        feedforward_dim: Channels of the hidden layer of the MLP.
        dynamic_dim: Channels between the two layers of the dynamic head.
        resolution: Side of the pooled features, S.
        dropout: Dropout rate, in [0, 1).
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        num_heads: int,
        feedforward_dim: int,
        dynamic_dim: int,
        resolution: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.interaction = DynamicHead(dim, dynamic_dim, resolution)
        self.mlp = nn.Sequential(
            nn.Linear(dim, feedforward_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward_dim, dim),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)
        self.cls_layers = nn.Sequential(*_layer(dim))
        self.box_layers = nn.Sequential(*_layer(dim), *_layer(dim), *_layer(dim))
        self.cls_score = nn.Linear(dim, num_classes)
        self.bbox_pred = nn.Linear(dim, 4)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.cls_score.bias, -math.log((1 - _PRIOR) / _PRIOR))
        # The first boxes of a stage are those of the stage before.
        nn.init.zeros_(self.bbox_pred.weight)
        nn.init.zeros_(self.bbox_pred.bias)
        self.transform = Box2BoxTransform(_DELTA_WEIGHTS)

    def forward(self, vectors: Tensor, pooled: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refine proposals.

        Args:
            vectors: Features of the proposals, `N×Q×C`.
            pooled: Image features of their boxes, `(N·Q)×C×S×S`.
            boxes: Boxes `N×Q×4` as (x0, y0, x1, y1) in pixels.

        Returns:
            Logits `N×Q×K`, boxes `N×Q×4` and features of the proposals `N×Q×C`.
        """
        attended = self.self_attn(vectors, vectors, vectors, need_weights=False)[0]
        vectors = self.norm1(vectors + self.dropout(attended))
        seen = self.interaction(vectors.flatten(0, 1), pooled).view_as(vectors)
        vectors = self.norm2(vectors + self.dropout(seen))
        vectors = self.norm3(vectors + self.mlp(vectors))
        deltas = self.bbox_pred(self.box_layers(vectors))
        moved = self.transform.apply_deltas(deltas.flatten(0, 1).float(), boxes.flatten(0, 1)).view_as(boxes)
        return self.cls_score(self.cls_layers(vectors)), moved, vectors


class DynamicHead(nn.Module):
    """Two layers over the pooled features of a box, whose weights are computed from the proposal's features.

    Args:
        dim: Channels, C.
        hidden: Channels between the two layers, D.
        resolution: Side of the pooled features, S.
    """

    def __init__(self, dim: int, hidden: int, resolution: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.dynamic_layer = nn.Linear(dim, 2 * dim * hidden)
        self.norm_in, self.norm_out = nn.LayerNorm(hidden), nn.LayerNorm(dim)
        self.out_layer = nn.Linear(dim * resolution**2, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, vectors: Tensor, pooled: Tensor) -> Tensor:
        """Look at the image with the weights of each proposal.

        Args:
            vectors: Features of the proposals, `M×C`.
            pooled: Image features of their boxes, `M×C×S×S`.

        Returns:
            Features `M×C`.
        """
        dim = vectors.shape[1]
        weights_in, weights_out = self.dynamic_layer(vectors).chunk(2, dim=1)
        x = pooled.flatten(2).transpose(1, 2)
        x = self.norm_in(x @ weights_in.view(-1, dim, self.hidden)).relu()
        x = self.norm_out(x @ weights_out.view(-1, self.hidden, dim)).relu()
        return self.norm(self.out_layer(x.flatten(1))).relu()


def _layer(dim: int) -> tuple[nn.Module, ...]:
    return nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()
