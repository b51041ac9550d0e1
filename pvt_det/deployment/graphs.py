"""Build the exportable graph of a model; contains the graphs of segmentors and classifiers."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN, RetinaNet, SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from pvt_det.deployment.adaptive import ATSSGraph, GFLGraph
from pvt_det.deployment.files import Format
from pvt_det.deployment.image import Features, Normalize
from pvt_det.deployment.panoptic import PanopticGraph
from pvt_det.deployment.query import QueryGraph
from pvt_det.deployment.rcnn import RCNNGraph
from pvt_det.deployment.retinanet import RetinaNetGraph
from pvt_det.deployment.suppression import Suppress, suppress, suppress_by_torchvision
from pvt_det.errors import ConfigError
from pvt_det.modeling.atss import ATSS
from pvt_det.modeling.gfl import GFL
from pvt_det.modeling.query_detector import QueryDetector
from pvt_det.models.trunk import Trunk


class SegmentorGraph(nn.Module):
    """Semantic FPN without Detectron2's structures: classifies every pixel of an image.

    Args:
        model: A trained segmentor. Its modules are shared, not copied.
        bgr: Whether the model takes BGR images.

    Raises:
        ConfigError: The head is not a Semantic FPN.
    """

    outputs = ("labels", "scores", "logits")

    def __init__(self, model: SemanticSegmentor, *, bgr: bool) -> None:
        super().__init__()
        if not isinstance(model.sem_seg_head, SemSegFPNHead):
            raise ConfigError(
                f"A segmentor with {type(model.sem_seg_head).__name__} cannot be exported. Expected a Semantic FPN."
            )
        self.features = Features(model, bgr=bgr)
        self.head = model.sem_seg_head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment images.

        Args:
            image: Images `N×3×H×W`, RGB, uint8.

        Returns:
            Labels `N×H×W` (int64, from 0), their probabilities `N×H×W`, and the logits `N×K×h×w` of the padded image,
            at the stride of the head. To get labels at a different size, resize the logits.
        """
        logits = self.head.layers(self.features(image))
        scaled = F.interpolate(logits, scale_factor=self.head.common_stride, mode="bilinear", align_corners=False)
        scores, labels = scaled[:, :, : image.shape[2], : image.shape[3]].softmax(dim=1).max(dim=1)
        return labels, scores, logits


class ClassifierGraph(nn.Module):
    """A classifier with normalization and softmax.

    Args:
        model: A trained classifier. Its modules are shared, not copied.
    """

    outputs = ("scores",)

    def __init__(self, model: Trunk) -> None:
        super().__init__()
        mean, std = (255 * torch.tensor(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        self.normalize = Normalize(mean, std, bgr=False)
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Classify images.

        Args:
            image: Images `N×3×H×W`, RGB, uint8.

        Returns:
            Probabilities `N×K`.
        """
        return self.model(self.normalize(image)).softmax(dim=1)


Graph: TypeAlias = RetinaNetGraph | QueryGraph | RCNNGraph | PanopticGraph | SegmentorGraph | ClassifierGraph
_ONE_STAGE = ((RetinaNet, RetinaNetGraph), (ATSS, ATSSGraph), (GFL, GFLGraph))


def build_graph(model: nn.Module, *, bgr: bool = False, kind: Format = "onnx") -> Graph:
    """Wrap a trained model as a function of tensors.

    Args:
        model: RetinaNet, ATSS, GFL, a detector without NMS, an R-CNN, Semantic or Panoptic FPN, or a PVT classifier. It
            is set to evaluation mode, and its weights are shared.
        bgr: Whether the model takes BGR images (`INPUT.FORMAT: BGR`).
        kind: Format that the graph is traced for.

    Returns:
        A module that takes images `N×3×H×W`, RGB, uint8. Its attribute `outputs` names its outputs.

    Raises:
        ConfigError: Models of this kind cannot be exported.
    """
    model.eval()
    suppression: Suppress = suppress_by_torchvision if kind == "torch" else suppress
    for architecture, graph in _ONE_STAGE:
        if isinstance(model, architecture):
            return graph(model, bgr=bgr, suppress=suppression)
    if isinstance(model, QueryDetector):
        return QueryGraph(model, bgr=bgr)
    if isinstance(model, PanopticFPN):
        return PanopticGraph(model, bgr=bgr, suppress=suppression)
    if isinstance(model, GeneralizedRCNN):
        return RCNNGraph(model, bgr=bgr, suppress=suppression)
    if isinstance(model, SemanticSegmentor):
        return SegmentorGraph(model, bgr=bgr)
    if isinstance(model, Trunk) and model.num_classes > 0:
        return ClassifierGraph(model)
    raise ConfigError(
        f"{type(model).__name__} cannot be exported. Expected RetinaNet, ATSS, GFL, RT-DETRv2, DETR, Faster, Mask, "
        "Cascade or Sparse R-CNN, Semantic or Panoptic FPN, or a classifier."
    )
