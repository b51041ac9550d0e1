"""Which graph suits a model."""

from __future__ import annotations

from typing import TypeAlias

from detectron2.modeling.meta_arch import GeneralizedRCNN, PanopticFPN, RetinaNet, SemanticSegmentor
from torch import nn

from pvt_det.errors import ConfigError
from pvt_det.export.classifier import ClassifierGraph
from pvt_det.export.files import Kind
from pvt_det.export.rcnn import RCNNGraph
from pvt_det.export.retinanet import RetinaNetGraph
from pvt_det.export.segmentor import SegmentorGraph
from pvt_det.export.suppression import Suppress, suppress, suppress_by_torchvision
from pvt_det.models.trunk import Trunk

Graph: TypeAlias = RetinaNetGraph | RCNNGraph | SegmentorGraph | ClassifierGraph


def build_graph(model: nn.Module, *, bgr: bool = False, kind: Kind = "onnx") -> Graph:
    """Wrap a trained model as a function of tensors.

    Args:
        model: RetinaNet, an R-CNN, Semantic FPN, or a PVT classifier; put into evaluation mode, its weights shared.
        bgr: Whether the model takes blue first (`INPUT.FORMAT: BGR`).
        kind: Of file that it is traced for.

    Returns:
        A module that takes images `N×3×H×W`, RGB, uint8; its `outputs` names what it returns.

    Raises:
        ConfigError: No graph suits the model.
    """
    model.eval()
    how: Suppress = suppress if kind == "onnx" else suppress_by_torchvision
    if isinstance(model, RetinaNet):
        return RetinaNetGraph(model, bgr=bgr, suppress=how)
    if isinstance(model, GeneralizedRCNN) and not isinstance(model, PanopticFPN):
        return RCNNGraph(model, bgr=bgr, suppress=how)
    if isinstance(model, SemanticSegmentor):
        return SegmentorGraph(model, bgr=bgr)
    if isinstance(model, Trunk) and model.num_classes > 0:
        return ClassifierGraph(model)
    raise ConfigError(
        f"{type(model).__name__} cannot be exported: RetinaNet, Faster, Mask and Cascade R-CNN, Semantic FPN and "
        "classifiers can."
    )
