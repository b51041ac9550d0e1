"""Panoptic FPN as an exportable graph, without Detectron2's structures."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.modeling.meta_arch import PanopticFPN
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor, nn

from pvt_det.deployment.rcnn import RCNNGraph
from pvt_det.deployment.suppression import Suppress
from pvt_det.errors import ConfigError


class PanopticGraph(nn.Module):
    """Panoptic FPN from images to detections with masks, and to the classes of the pixels.

    The feature maps are computed once. Users of the file combine its outputs, because that depends on thresholds and on
    the size of the original image: `combine_semantic_and_instance_outputs` of Detectron2 takes the masks, pasted into
    the image, and the class with the highest logit at each of its pixels.

    Args:
        model: A trained Panoptic FPN. Its modules are shared, not copied.
        bgr: Whether the model takes BGR images.
        suppress: Function for non-maximum suppression, from `pvt_det.deployment.suppression`.

    Raises:
        ConfigError: The model has no masks, or heads other than those of Panoptic FPN.
    """

    def __init__(self, model: PanopticFPN, *, bgr: bool, suppress: Suppress) -> None:
        super().__init__()
        head = model.sem_seg_head
        if not isinstance(head, SemSegFPNHead):
            raise ConfigError(f"Panoptic FPN with {type(head).__name__} cannot be exported. Expected a Semantic FPN.")
        self.detector = RCNNGraph(model, bgr=bgr, suppress=suppress)
        if self.detector.masks is None:
            raise ConfigError("MODEL.MASK_ON = False: Panoptic FPN needs masks. Set it to True.")
        self.head = head
        self.outputs = (*self.detector.outputs, "semantic_labels", "semantic_logits")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect objects and classify pixels.

        Args:
            image: Images `N×3×H×W`, RGB, uint8.

        Returns:
            The outputs of `RCNNGraph`: boxes, scores, labels, images and masks of the detections; the semantic labels
            `N×H×W` (int64; 0 means any object); and the semantic logits `N×K×h×w` of the padded images, at the stride
            of the head, from which labels of a different size are computed.
        """
        height, width = image.shape[2], image.shape[3]
        maps = self.detector.features(image)
        logits = self.head.layers(maps)
        scaled = F.interpolate(logits, scale_factor=self.head.common_stride, mode="bilinear", align_corners=False)
        return (*self.detector.detect(maps, (height, width)), scaled[:, :, :height, :width].argmax(dim=1), logits)
