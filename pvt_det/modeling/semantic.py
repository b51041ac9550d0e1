"""The head of Semantic FPN, for semantic segmentation and for Panoptic FPN's stuff branch.

Detectron2's `SemanticSegmentor` and `PanopticFPN` take it as it is: `MODEL.SEM_SEG_HEAD.NAME: PVTSemSegFPNHead`.
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
    """Detectron2's Semantic FPN head with the dropout, loss and first classifier of the published PVT segmentors.

    Each FPN map goes through 3×3 convolutions, each but p2's followed by an upsampling by 2, until all are at the
    common stride; their sum is classified (Panoptic Feature Pyramid Networks, arXiv 1901.02446, section 3). That is
    MMSegmentation's FPNHead too. The published configs normalise with SyncBN; GroupNorm, Detectron2's choice, needs
    no other images or GPUs, so that small batches, single GPUs and CPUs train alike.

    Args:
        input_shape: Channels and strides of the maps that the head takes.
        dropout: Share of the summed map's channels set to 0 in training, in [0, 1).
        loss_average: Whether cross entropy is divided by the number of "all" pixels, ignored ones too (MMSegmentation
            0.x), or of "valid" ones (Detectron2), counted over all processes.
        arguments: Those of Detectron2's SemSegFPNHead.
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
        # MMSegmentation's: Detectron2's start, made for convolutions before a ReLU, gives a loss of 13 for 5 classes.
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)
        self.loss_average = loss_average

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Detectron2's arguments and `MODEL.SEM_SEG_HEAD.DROPOUT`, `LOSS_AVERAGE`.

        Raises:
            ConfigError: The backbone lacks a map of `IN_FEATURES`.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing or not head.IN_FEATURES:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES = {head.IN_FEATURES}: expected maps that the backbone "
                f"{cfg.MODEL.BACKBONE.NAME} gives out, {', '.join(input_shape)}."
            )
        return {
            **super().from_config(cfg, input_shape),
            "dropout": head.DROPOUT,
            "loss_average": head.LOSS_AVERAGE,
        }

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Logits `N×K×H×W` at the common stride."""
        maps = [head(features[name]) for name, head in zip(self.in_features, self.scale_heads, strict=True)]
        return self.predictor(self.dropout(sum(maps[1:], start=maps[0])))

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross entropy at full resolution.

        Args:
            predictions: Logits `N×K×H×W` at the common stride s.
            targets: Labels `N×sH×sW`, 0 … K-1 or the value to ignore.

        Returns:
            "loss_sem_seg", a scalar; 0 where every label is to be ignored.
        """
        # Scores in bf16 would tie: leave autocast behind.
        with torch.autocast(predictions.device.type, enabled=False):
            logits = F.interpolate(
                predictions.float(), scale_factor=self.common_stride, mode="bilinear", align_corners=False
            )
            total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value)
        return {"loss_sem_seg": self.loss_weight * total / self._count(targets)}

    def _count(self, targets: Tensor) -> Tensor:
        """How many pixels this process divides its summed loss by, a scalar above 0.

        Gradients are averaged over processes, hence the whole batch's count is shared out equally.
        """
        if self.loss_average == "all":
            return torch.full((), float(targets.numel()), device=targets.device)
        count, world_size = (targets != self.ignore_value).sum().float(), comm.get_world_size()
        # Without gradients (losses on validation data) processes need not be in step.
        if world_size > 1 and torch.is_grad_enabled():
            torch.distributed.all_reduce(count)
            return count.clamp(min=1) / world_size
        return count.clamp(min=1)
