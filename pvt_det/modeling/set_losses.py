"""Losses of set prediction: every object is matched with one query (DETR, https://arxiv.org/abs/2005.12872)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from pvt_det.modeling.focal import dense_focal_loss
from pvt_det.utils.extras import require_packages

_ALPHA, _GAMMA = 0.25, 2.0
_EPSILON = 1e-12


@dataclass(frozen=True)
class SetLosses:
    """Match the predictions of each layer with the objects, and compute the losses of all layers.

    The losses are divided by the number of objects in the batch of all processes, so that several processes compute the
    same losses as a single one with the whole batch. Losses without gradients (on validation data) use the number of
    their own batch.

    Attributes:
        class_weight: Weight of the class loss, and of the class cost in the matching.
        l1_weight: Weight of the L1 loss of boxes as fractions of the image, and of its cost.
        giou_weight: Weight of the generalized IoU loss, and of its cost.
        background_weight: Weight of the background in softmax cross-entropy. None selects the focal loss (alpha 0.25,
            gamma 2), whose logits have no column for the background.
        l1_format: Box format for the L1 loss: "cxcywh" (DETR) or "xyxy" (Sparse R-CNN).
    """

    class_weight: float
    l1_weight: float
    giou_weight: float
    background_weight: float | None
    l1_format: str

    def __call__(self, logits: Tensor, boxes: Tensor, sizes: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        """Compute the losses, summed over all layers, in fp32.

        Args:
            logits: Logits of all L layers, `L×N×Q×K`, or `L×N×Q×(K+1)` for softmax.
            boxes: Boxes of all layers, `L×N×Q×4` as (x0, y0, x1, y1) in pixels.
            sizes: Sizes of the images, `N×4` as (width, height, width, height) in pixels.
            targets: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Scalars "loss_cls", "loss_box_reg" and "loss_giou".

        Raises:
            ConfigError: SciPy, which solves the matching, is not installed.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits, boxes = logits.float(), boxes.float()
            layer, image, query, target = self.match(logits.detach(), boxes.detach(), sizes, targets)
            classes = torch.cat([each.gt_classes for each in targets])
            num_classes = logits.shape[-1] - (self.background_weight is not None)
            labels = torch.full(logits.shape[:-1], num_classes, device=logits.device)
            labels[layer, image, query] = classes[target]
            # All layers have the same number of matches.
            matches = len(target) / len(logits)
            count, class_count = _counts(matches, self._class_count(matches, labels[0].numel()), logits.device)

            found, scale = boxes[layer, image, query], sizes[image]
            true = torch.cat([each.gt_boxes.tensor for each in targets]).float()[target]
            difference = self._fractions(found, scale) - self._fractions(true, scale)
            loss_giou = generalized_box_iou_loss(found, true, reduction="sum")
            return {
                "loss_cls": self.class_weight * self._class_loss(logits, labels) / class_count,
                "loss_box_reg": self.l1_weight * difference.abs().sum() / count,
                "loss_giou": self.giou_weight * loss_giou / count,
            }

    @torch.no_grad()
    def match(
        self, logits: Tensor, boxes: Tensor, sizes: Tensor, targets: list[Instances]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find the cheapest one-to-one matching of queries and objects, for each layer and image.

        Args:
            logits: Logits of all layers, `L×N×Q×K`, or `L×N×Q×(K+1)` for softmax.
            boxes: Boxes of all layers, `L×N×Q×4` as (x0, y0, x1, y1) in pixels.
            sizes: Sizes of the images, `N×4` as (width, height, width, height) in pixels.
            targets: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Layer, image, query and object of each of the M matches, `M` each. Objects are counted over all images. If
            there are more objects than queries, the objects that are left have no match.
        """
        require_packages("Training DETR or Sparse R-CNN", "scipy", extra="detr")
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

        class_costs = self._class_costs(logits)
        images = zip(class_costs.unbind(1), boxes.unbind(1), sizes, targets, strict=True)
        # One copy for the whole batch, because each waits for the GPU.
        costs = torch.cat([self._costs(*each) for each in images], dim=2).cpu()
        matches: list[tuple[int, int, int, int]] = []
        first = 0
        for number, part in enumerate(costs.split([len(each) for each in targets], dim=2)):
            for level, cost in enumerate(part.numpy()):
                pairs = zip(*linear_sum_assignment(cost), strict=True)
                matches += [(level, number, query, first + target) for query, target in pairs]
            first += part.shape[2]
        index = torch.tensor(matches, dtype=torch.int64).reshape(-1, 4).to(logits.device)
        layer, image, query, target = index.unbind(1)
        return layer, image, query, target

    def _costs(self, class_costs: Tensor, boxes: Tensor, size: Tensor, target: Instances) -> Tensor:
        """Return the costs `L×Q×G` of the G objects of an image."""
        true = target.gt_boxes.tensor.float()
        distance = torch.cdist(
            self._fractions(boxes, size), self._fractions(true, size).expand(len(boxes), -1, -1), p=1
        )
        overlap = generalized_box_iou(boxes.flatten(0, 1), true).view_as(distance)
        cost = class_costs[:, :, target.gt_classes] + self.l1_weight * distance - self.giou_weight * overlap
        # The losses of such predictions are not finite either, which the trainer handles.
        return cost.nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9)

    def _class_costs(self, logits: Tensor) -> Tensor:
        if self.background_weight is not None:
            return -self.class_weight * logits.softmax(dim=-1)
        score = logits.sigmoid()
        positive = -_ALPHA * (1 - score) ** _GAMMA * (score + _EPSILON).log()
        negative = -(1 - _ALPHA) * score**_GAMMA * (1 - score + _EPSILON).log()
        return self.class_weight * (positive - negative)

    def _class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.background_weight is None:
            return dense_focal_loss([logits.flatten(0, 1)], labels.flatten(0, 1), _ALPHA, _GAMMA)
        weight = logits.new_ones(logits.shape[-1])
        weight[-1] = self.background_weight
        return F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weight, reduction="sum")

    def _class_count(self, matches: float, queries: int) -> float:
        """Return the divisor of a layer's class loss: for softmax, the weights of all its labels."""
        return matches if self.background_weight is None else matches + self.background_weight * (queries - matches)

    def _fractions(self, boxes: Tensor, size: Tensor) -> Tensor:
        return box_convert(boxes, "xyxy", self.l1_format) / size


def _counts(matches: float, class_count: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Average over all processes the counts by which losses are divided."""
    counts = torch.tensor([matches, class_count], device=device)
    # Processes may have different numbers of validation images.
    if comm.get_world_size() > 1 and torch.is_grad_enabled():
        torch.distributed.all_reduce(counts)
        counts /= comm.get_world_size()
    first, second = counts.clamp(min=1).unbind()
    return first, second
