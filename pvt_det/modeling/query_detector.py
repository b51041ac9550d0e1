"""The common part of detectors that predict a fixed set of boxes, without anchors and non-maximum suppression."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from pvt_det.modeling.finite import require_finite


class BottomUp(Backbone):
    """A trunk without an FPN, under the name that it has in an FPN.

    All detectors then have the same names for the weights of the trunk, `backbone.bottom_up.…`.

    Args:
        trunk: The trunk.
    """

    def __init__(self, trunk: Backbone) -> None:
        super().__init__()
        self.bottom_up = trunk

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps of the trunk.

        Args:
            x: Normalized images `N×3×H×W`.

        Returns:
            Feature maps by name, each `N×C×H/stride×W/stride`.
        """
        return self.bottom_up(x)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return the channels and strides of the feature maps by name."""
        return self.bottom_up.output_shape()

    @property
    def size_divisibility(self) -> int:
        """Divisor of the sides of the images in pixels: that of the trunk, or its largest stride if it has none."""
        return self.bottom_up.size_divisibility or max(shape.stride for shape in self.output_shape().values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """How Detectron2 pads images, as for the trunk."""
        return self.bottom_up.padding_constraints


class QueryDetector(nn.Module, ABC):
    """A detector with a fixed number of queries, each of which predicts one box and the scores of its classes.

    In training the predictions are matched one to one with the objects, so that no two queries learn to predict the
    same object. Therefore neither anchors nor non-maximum suppression are needed. Subclasses define `predict` and
    `losses`.

    Args:
        backbone: Backbone with the feature maps `in_features`.
        in_features: Names of the feature maps that the head uses, from fine to coarse.
        num_classes: Number of classes, K.
        pixel_mean: Mean of the three channels, in 0 … 255.
        pixel_std: Standard deviation of the three channels, in 0 … 255.
        input_format: Channel order of the images, "RGB" or "BGR".
        score_threshold: Detections must have a score above this threshold, in [0, 1).
        nms_threshold: IoU, in (0, 1], above which the lower score is dropped where detections of several views of an
            image are merged. The model itself does not use it.
        max_detections: Maximum number of detections per image.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.in_features = list(in_features)
        self.num_classes = num_classes
        self.input_format = input_format
        self.score_threshold = score_threshold
        self.test_nms_thresh = nms_threshold
        self.max_detections = max_detections
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def common_arguments(cls, cfg: CfgNode, section: str) -> dict[str, Any]:
        """Read the arguments that all these detectors have, and build the backbone.

        Args:
            cfg: Complete config.
            section: Name of the section of `MODEL` that describes the head: "DETR", "RT_DETR" or "SPARSE_RCNN".

        Returns:
            Keyword arguments of the constructor.
        """
        head = cfg.MODEL[section]
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone if hasattr(backbone, "bottom_up") else BottomUp(backbone),
            "in_features": head.IN_FEATURES,
            "num_classes": head.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "score_threshold": head.SCORE_THRESH_TEST,
            "nms_threshold": head.NMS_THRESH_TEST,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    @abstractmethod
    def predict(self, features: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the logits and boxes of the last layer.

        Args:
            features: Feature maps of the levels in `in_features`, `N×C_l×H_l×W_l`.
            sizes: Sizes of the images without padding, `N×4` as (width, height, width, height) in pixels.

        Returns:
            Logits `N×Q×K` (`N×Q×(K+1)` for softmax), and boxes `N×Q×4` as (x0, y0, x1, y1) in pixels.
        """

    @abstractmethod
    def losses(self, features: list[Tensor], sizes: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            features: Feature maps of the levels in `in_features`, `N×C_l×H_l×W_l`.
            sizes: Sizes of the images without padding, `N×4` as (width, height, width, height) in pixels.
            targets: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Scalars by name.
        """

    def rank(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select the highest scores. A query can be selected several times, with different classes.

        Args:
            logits: Logits of the last layer, `N×Q×K`.

        Returns:
            Scores `N×D` in descending order, their classes `N×D` and their queries `N×D`. D is `max_detections`, or
            the number of all scores if that is less.
        """
        classes = logits.shape[2]
        scores = logits.sigmoid().flatten(1)
        scores, index = scores.topk(min(self.max_detections, logits.shape[1] * classes), dim=1)
        return scores, index % classes, index // classes

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Compute the losses in training mode, or detect objects in evaluation mode.

        Args:
            batched_inputs: One dictionary per image, with its `image` as a tensor `3×H×W`; in training also with
                `instances` (`gt_boxes` and `gt_classes`), otherwise optionally with the `height` and `width` of the
                results in pixels.

        Returns:
            In training mode, the losses by name. Otherwise `{"instances": Instances}` for each image, with
            `pred_boxes`, `scores` and `pred_classes`, ordered by descending score.

        Raises:
            NumericError: The predictions are NaN or infinite.
        """
        images = self.preprocess_image(batched_inputs)
        maps = self.backbone(images.tensor)
        features = [maps[name] for name in self.in_features]
        sizes = torch.tensor([(w, h, w, h) for h, w in images.image_sizes], dtype=torch.float32, device=self.device)
        if self.training:
            return self.losses(features, sizes, [record["instances"].to(self.device) for record in batched_inputs])
        logits, boxes = self.predict(features, sizes)
        require_finite([logits, boxes], "scores or boxes")
        found = zip(*self.rank(logits), boxes, images.image_sizes, batched_inputs, strict=True)
        return [{"instances": self._instances(*image)} for image in found]

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalize, pad and batch images.

        Args:
            batched_inputs: One dictionary per image, with its `image` as a tensor `3×H×W`.

        Returns:
            The batch, with the sizes of the images before padding.
        """
        images = [(record["image"].to(self.device) - self.pixel_mean) / self.pixel_std for record in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def _instances(
        self,
        scores: Tensor,
        classes: Tensor,
        queries: Tensor,
        boxes: Tensor,
        size: tuple[int, int],
        record: dict[str, Any],
    ) -> Instances:
        kept = scores > self.score_threshold
        found = Instances(size, pred_boxes=Boxes(boxes[queries[kept]]), scores=scores[kept], pred_classes=classes[kept])
        return detector_postprocess(found, record.get("height", size[0]), record.get("width", size[1]))
