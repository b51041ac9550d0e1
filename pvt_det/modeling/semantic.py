"""Semantic FPN head, for semantic segmentation and for the stuff branch of Panoptic FPN.

To use it in Detectron2's `SemanticSegmentor` or `PanopticFPN`, set `MODEL.SEM_SEG_HEAD.NAME: PVTSemSegFPNHead`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.utils import comm
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.modeling.registration import register


@register(SEM_SEG_HEADS_REGISTRY)
class PVTSemSegFPNHead(SemSegFPNHead):
    """Detectron2's Semantic FPN head with the dropout and loss of the published PVT segmentors.

    Each FPN level goes through 3×3 convolutions, each followed by 2× upsampling (except for p2), until all levels have
    the common stride. Their sum is classified (Panoptic Feature Pyramid Networks, arXiv 1901.02446, section 3).
    Architecture and initialization of the classifier are those of MMSegmentation's FPNHead. The published configs use
    SyncBN. GroupNorm, Detectron2's default, does not depend on other images or GPUs, so small batches, single GPUs and
    CPUs train alike.

    Args:
        input_shape: Channels and strides of the feature maps, by name.
        dropout: Probability of setting a channel of the summed map to 0 in training, in [0, 1).
        loss_average: Pixels over which the cross entropy is averaged: "all", including ignored ones (MMSegmentation
            0.x), or "valid", counted over all processes (Detectron2).
        **arguments: Arguments of Detectron2's SemSegFPNHead.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        dropout: float = 0.0,
        loss_average: str = "valid",
        **arguments: Any,
    ) -> None:
        super().__init__(input_shape, **arguments)
        assert loss_average in ("all", "valid"), loss_average
        self.dropout = nn.Dropout2d(dropout)
        # Detectron2's initialization, which is for convolutions before a ReLU, gives an initial loss of 13 with 5
        # classes.
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)
        self.loss_average = loss_average

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.SEM_SEG_HEAD.DROPOUT` and `LOSS_AVERAGE` in addition to the keys that
                Detectron2 uses.
            input_shape: Channels and strides of the feature maps, by name.

        Returns:
            Keyword arguments of the constructor.

        Raises:
            ConfigError: The backbone does not return a feature map of `IN_FEATURES`, or `IN_FEATURES` is empty.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing or not head.IN_FEATURES:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES = {head.IN_FEATURES}: expected feature maps of the backbone "
                f"{cfg.MODEL.BACKBONE.NAME}: {', '.join(input_shape)}."
            )
        return {
            **super().from_config(cfg, input_shape),
            "dropout": head.DROPOUT,
            "loss_average": head.LOSS_AVERAGE,
        }

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Compute logits at the common stride.

        Args:
            features: Feature maps by name, `N×C×H_l×W_l`.

        Returns:
            Logits `N×K×H×W`.
        """
        maps = [head(features[name]) for name, head in zip(self.in_features, self.scale_heads, strict=True)]
        return self.predictor(self.dropout(sum(maps[1:], start=maps[0])))

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compute the cross entropy at full resolution.

        Args:
            predictions: Logits `N×K×H×W` at the common stride s.
            targets: Labels `N×sH×sW`: a class 0 … K-1, or the value to ignore.

        Returns:
            Scalar "loss_sem_seg". It is 0 if all labels are ignored.
        """
        # Disable autocast, because scores would tie in bf16.
        with torch.autocast(predictions.device.type, enabled=False):
            logits = F.interpolate(
                predictions.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False
            )
            total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value)
        return {"loss_sem_seg": self.loss_weight * total / self._count(targets)}

    def _count(self, targets: Tensor) -> Tensor:
        """Compute the number of pixels by which this process divides its summed loss, a positive scalar.

        Gradients are averaged over processes, so the count of the whole batch is divided by the number of processes.
        """
        if self.loss_average == "all":
            return torch.full((), float(targets.numel()), device=targets.device)
        count, world_size = (targets != self.ignore_value).sum().float(), comm.get_world_size()
        # Do not reduce over processes without gradients: they can have different numbers of validation images.
        if world_size > 1 and torch.is_grad_enabled():
            torch.distributed.all_reduce(count)
            return count.clamp(min=1) / world_size
        return count.clamp(min=1)
