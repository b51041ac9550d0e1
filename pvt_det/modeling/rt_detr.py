"""RT-DETRv2 (https://arxiv.org/abs/2407.17140) with transformers' encoder, decoder and losses around any trunk."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn
from torchvision.ops import box_convert

from pvt_det.errors import ConfigError
from pvt_det.modeling.query_detector import QueryDetector
from pvt_det.modeling.registration import register
from pvt_det.utils.extras import require_packages

# Names of the losses: those of transformers, and ours.
_LOSSES = {"vfl": "cls", "bbox": "box_reg", "giou": "giou"}


@register(META_ARCH_REGISTRY)
class PVTRTDETR(QueryDetector):
    """RT-DETRv2: a hybrid encoder over three feature maps, and a decoder with deformable attention.

    The modules and losses are those of `transformers`. In these points the model follows the published code instead:

    - Weights are initialized as published. `transformers` draws all of them, and the scales of the batch norms, from a
      normal distribution with a standard deviation of 0.01, which is meant for loading trained weights.
    - Under autocast, the decoder and the losses are in fp32, because box coordinates in bf16 are off by pixels.
    - The losses are divided by the number of objects in the batch of all processes.

    Boxes are relative to the padded images. So the feature maps may have any size.

    Args:
        num_queries: Number of queries, Q.
        hidden_dim: Channels of encoder and decoder.
        num_heads: Heads of the attention layers.
        feedforward_dim: Channels of the hidden layers of the MLPs.
        encoder_layers: Number of attention layers over the coarsest feature map.
        decoder_layers: Number of decoder layers.
        num_denoising: Number of denoising queries in training; 0 disables denoising.
        class_weight: Weight of the varifocal loss.
        l1_weight: Weight of the L1 loss of the boxes.
        giou_weight: Weight of the generalized IoU loss of the boxes.
        **arguments: Arguments of `QueryDetector`. There must be three feature maps, each half the size of the one
            before.

    Raises:
        ConfigError: `transformers` is not installed, or its version is not supported. Later: the feature maps of an
            image have fewer cells than there are queries.
    """

    @configurable
    def __init__(
        self,
        *,
        num_queries: int,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        encoder_layers: int,
        decoder_layers: int,
        num_denoising: int,
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        shapes = self.backbone.output_shape()
        self.strides: list[int] = [shapes[name].stride for name in self.in_features]
        self.detr = _build(
            [shapes[name].channels for name in self.in_features],
            feat_strides=self.strides,
            num_labels=self.num_classes,
            num_queries=num_queries,
            d_model=hidden_dim,
            encoder_hidden_dim=hidden_dim,
            decoder_in_channels=[hidden_dim] * len(self.strides),
            encoder_attention_heads=num_heads,
            decoder_attention_heads=num_heads,
            encoder_ffn_dim=feedforward_dim,
            decoder_ffn_dim=feedforward_dim,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            num_denoising=num_denoising,
            weight_loss_vfl=class_weight,
            weight_loss_bbox=l1_weight,
            weight_loss_giou=giou_weight,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.RT_DETR`, and the keys of the backbone.

        Returns:
            Keyword arguments of the constructor.
        """
        head = cfg.MODEL.RT_DETR
        return {
            **cls.common_arguments(cfg, "RT_DETR"),
            "num_queries": head.NUM_QUERIES,
            "hidden_dim": head.HIDDEN_DIM,
            "num_heads": head.NUM_HEADS,
            "feedforward_dim": head.FEEDFORWARD_DIM,
            "encoder_layers": head.ENCODER_LAYERS,
            "decoder_layers": head.DECODER_LAYERS,
            "num_denoising": head.NUM_DENOISING,
            "class_weight": head.CLASS_WEIGHT,
            "l1_weight": head.L1_WEIGHT,
            "giou_weight": head.GIOU_WEIGHT,
        }

    def predict(self, features: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the logits and boxes of the last decoder layer.

        Args:
            features: Feature maps, `N×C_l×H_l×W_l`.
            sizes: Not used.

        Returns:
            Logits `N×Q×K`, and boxes `N×Q×4` as (x0, y0, x1, y1) in pixels.
        """
        outputs = self._run(features)
        boxes = box_convert(outputs.intermediate_reference_points[:, -1], "cxcywh", "xyxy")
        height, width = self._padded(features)
        boxes = torch.stack([boxes[..., 0::2] * width, boxes[..., 1::2] * height], dim=-1).flatten(-2)
        return outputs.intermediate_logits[:, -1], boxes

    def losses(self, features: list[Tensor], sizes: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        """Compute the varifocal, L1 and generalized IoU loss, summed over all layers.

        Args:
            features: Feature maps, `N×C_l×H_l×W_l`.
            sizes: Not used.
            targets: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Scalars "loss_cls", "loss_box_reg" and "loss_giou", and the same with the suffix "_denoising" for the
            denoising queries. All are NaN if a prediction is.

        Raises:
            ConfigError: SciPy, which matches predictions and objects, is not installed.
        """
        require_packages("Training RT-DETRv2", "scipy", extra="detr")
        from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

        height, width = self._padded(features)
        scale = torch.tensor([width, height, width, height], device=self.device)
        labels = [
            {
                "class_labels": each.gt_classes,
                "boxes": box_convert(each.gt_boxes.tensor.float() / scale, "xyxy", "cxcywh"),
            }
            for each in targets
        ]
        outputs = self._run(features, labels)
        logits, boxes = outputs.intermediate_logits, outputs.intermediate_reference_points
        if not bool((logits.isfinite().all() & boxes.isfinite().all()).item()):
            # The matching would fail. The trainer handles losses that are not finite.
            return dict.fromkeys(self._loss_names(), (logits.sum() + boxes.sum()) * math.nan)
        with torch.autocast(self.device.type, enabled=False):
            _, values, _ = RTDetrForObjectDetectionLoss(
                logits[:, -1],
                labels,
                self.device,
                boxes[:, -1],
                self.detr.config,
                logits,
                boxes,
                enc_topk_logits=outputs.enc_topk_logits,
                enc_topk_bboxes=outputs.enc_topk_bboxes,
                denoising_meta_values=outputs.denoising_meta_values,
            )
        # A batch without objects has no denoising queries, but each process needs the same losses and gradients.
        unused = self.detr.denoising_class_embed.weight.sum() if self.detr.config.num_denoising else logits.sum()
        losses = dict.fromkeys(self._loss_names(), 0 * unused) | _sum_layers(values)
        share = _share_of_objects(sum(map(len, targets)), self.device)
        return {name: value * share for name, value in losses.items()}

    def _loss_names(self) -> list[str]:
        suffixes = ("", "_denoising") if self.detr.config.num_denoising else ("",)
        return [f"loss_{name}{suffix}" for suffix in suffixes for name in _LOSSES.values()]

    def _run(self, features: list[Tensor], labels: list[dict[str, Tensor]] | None = None) -> Any:
        """Run encoder and decoder. `labels` are the objects from which the denoising queries are made."""
        code = sys.modules[type(self.detr).__module__]
        exporting = torch.compiler.is_exporting()
        if not exporting:
            self._require_cells(features)
        with patch.multiple(code, create=True, **_PORTABLE) if exporting else nullcontext():
            projected = [layer(each) for layer, each in zip(self.detr.encoder_input_proj, features, strict=True)]
            encoded = self.detr.encoder(projected).last_hidden_state
            with torch.autocast(self.device.type, enabled=False):
                # With the encoder's output given, transformers reads only the shape of what it takes for the images.
                return self.detr(features[0], encoder_outputs=([each.float() for each in encoded],), labels=labels)

    def _require_cells(self, features: list[Tensor]) -> None:
        """Raise an error if the feature maps have fewer cells than there are queries, which start at the best cells."""
        cells = sum(each.shape[2] * each.shape[3] for each in features)
        if cells < self.detr.config.num_queries:
            height, width = self._padded(features)
            raise ConfigError(
                f"MODEL.RT_DETR.NUM_QUERIES = {self.detr.config.num_queries}: images of {height}x{width} pixels have "
                f"only {cells} cells in the feature maps, and each query starts at another cell. Set it to {cells} or "
                "less, or use larger images."
            )

    def _padded(self, features: list[Tensor]) -> tuple[int, int]:
        """Return the height and width of the padded images in pixels."""
        height, width = features[-1].shape[-2:]
        return height * self.strides[-1], width * self.strides[-1]


class _NoMaps(nn.Module):
    """In the place of transformers' backbone: the feature maps come from our trunk."""

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        return []


def _length(values: Any) -> Any:
    return values.shape[0] if isinstance(values, Tensor) else len(values)


# Functions of transformers' code that would fix sizes of an exported graph, or that ONNX lacks: what replaces them.
_PORTABLE: dict[str, Any] = {
    "len": _length,
    "torch_int": lambda size: size,
    "torch_compilable_check": lambda condition, message: None,
}


def _build(channels: Sequence[int], **settings: Any) -> Any:
    """Build transformers' RT-DETRv2 for feature maps with these channels, without the backbone."""
    # Earlier versions name the weights differently, and add denoising queries to the loss of the last layer.
    require_packages("RT-DETRv2", "transformers>=5.20", extra="detr")
    from transformers import RTDetrResNetConfig, RTDetrV2Config, RTDetrV2ForObjectDetection

    # transformers builds a backbone from its own config. The smallest possible one is built, and replaced.
    widths = [8] * (len(channels) + 1)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=widths,
        depths=[1] * len(widths),
        layer_type="basic",
        out_indices=list(range(2, len(widths) + 1)),
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        encoder_in_channels=list(channels),
        encode_proj_layers=[len(channels) - 1],
        num_feature_levels=len(channels),
        decoder_n_levels=len(channels),
        tie_word_embeddings=False,
        **settings,
    )
    detr: Any = RTDetrV2ForObjectDetection(config).model
    detr.backbone = _NoMaps()
    detr.encoder_input_proj = nn.ModuleList(
        nn.Sequential(nn.Conv2d(width, config.d_model, 1, bias=False), nn.BatchNorm2d(config.d_model))
        for width in channels
    )
    _initialize(detr)
    return detr


@torch.no_grad()
def _initialize(detr: Any) -> None:
    """Initialize the weights as the published code (lyuwenyu/RT-DETR, rtdetrv2_pytorch) does."""
    kept = {id(module) for layer in detr.decoder.layers for module in layer.encoder_attn.modules()}
    for module in detr.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d) and id(module) not in kept:
            module.reset_parameters()
    for attention in (each for each in detr.modules() if hasattr(each, "q_proj")):
        # As in nn.MultiheadAttention, whose projections of queries, keys and values are one matrix.
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            nn.init.xavier_uniform_(layer.weight, gain=1 / math.sqrt(2))
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(attention.o_proj.bias)
    for classifier in (detr.enc_score_head, *detr.decoder.class_embed):
        nn.init.constant_(classifier.bias, -math.log(99))  # a probability of 0.01
    for head in (detr.enc_bbox_head, *detr.decoder.bbox_embed):
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)
    for layer in (detr.enc_output[0], *detr.decoder.query_pos_head.layers):
        nn.init.xavier_uniform_(layer.weight)
    for projection in detr.decoder_input_proj:
        nn.init.xavier_uniform_(projection[0].weight)
    if hasattr(detr, "denoising_class_embed"):
        nn.init.normal_(detr.denoising_class_embed.weight[:-1])


def _sum_layers(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add up transformers' losses, which are named `loss_vfl`, `loss_vfl_aux_0`, `loss_vfl_dn_0` and so on."""
    losses: dict[str, Tensor] = {}
    for name, value in values.items():
        _, kind, *layer = name.split("_")
        key = f"loss_{_LOSSES[kind]}" + ("_denoising" if "dn" in layer else "")
        losses[key] = losses[key] + value if key in losses else value
    return losses


def _share_of_objects(count: int, device: torch.device) -> float:
    """Return the factor that turns losses per object of this process into losses per object of all processes."""
    if comm.get_world_size() == 1 or not torch.is_grad_enabled():
        return 1.0
    total = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return max(count, 1) / max(total.item() / comm.get_world_size(), 1)
