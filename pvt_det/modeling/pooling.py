"""ROIAlign over several feature maps, on plain tensors."""

from __future__ import annotations

import torch
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torchvision.ops import roi_align


class Pool(nn.Module):
    """ROIAlign from the feature map that matches the size of a box (Feature Pyramid Networks, equation 1).

    It computes the same as Detectron2's `ROIPooler`, and can also be exported.

    Args:
        pooler: Detectron2's pooler, whose settings are used.
        names: Names of the feature maps, from the finest to the coarsest.
    """

    def __init__(self, pooler: ROIPooler, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.side = pooler.output_size
        self.aligns = [(align.spatial_scale, align.sampling_ratio, align.aligned) for align in pooler.level_poolers]
        self.lowest, self.highest = pooler.min_level, pooler.max_level
        self.canonical_size, self.canonical_level = pooler.canonical_box_size, pooler.canonical_level

    def forward(self, maps: dict[str, Tensor], boxes: Tensor, images: Tensor) -> Tensor:
        """Pool the features of boxes.

        Args:
            maps: Feature maps by name, `N×C×H×W`.
            boxes: Boxes `R×4`, corners in pixels.
            images: Image index of each box, `R`.

        Returns:
            Features `R×C×h×w`, with the output size of the pooler.
        """
        features = [maps[name].float() for name in self.names]
        x0, y0, x1, y1 = boxes.unbind(dim=1)
        level = self.canonical_level + torch.log2(((x1 - x0) * (y1 - y0)).sqrt() / self.canonical_size + 1e-8)
        level = level.floor().clamp(self.lowest, self.highest).long() - self.lowest
        rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
        pooled = features[0].new_zeros((boxes.shape[0], features[0].shape[1], *self.side))
        for number, (feature, (scale, ratio, aligned)) in enumerate(zip(features, self.aligns, strict=True)):
            (index,) = (level == number).nonzero().unbind(1)
            values = roi_align(feature, rois[index], self.side, scale, ratio, aligned)
            pooled = pooled.index_put((index,), values)
        return pooled
