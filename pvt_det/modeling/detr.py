"""DETR (https://arxiv.org/abs/2005.12872) on the last feature map of any trunk."""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn
from torchvision.ops import MLP, box_convert

from pvt_det.modeling.query_detector import QueryDetector
from pvt_det.modeling.registration import register
from pvt_det.modeling.set_losses import SetLosses


@register(META_ARCH_REGISTRY)
class PVTDETR(QueryDetector):
    """DETR: an encoder over the feature map, a decoder over learned queries, and one box and class for each query.

    Args:
        num_queries: Number of queries, Q.
        hidden_dim: Channels of encoder and decoder, a multiple of 4.
        num_heads: Heads of the attention layers.
        feedforward_dim: Channels of the hidden layers of the MLPs.
        encoder_layers: Number of encoder layers.
        decoder_layers: Number of decoder layers, L.
        dropout: Dropout rate, in [0, 1).
        set_losses: Matching and losses.
        **arguments: Arguments of `QueryDetector`, with a single feature map.
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
        dropout: float,
        set_losses: SetLosses,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        shape = self.backbone.output_shape()[self.in_features[0]]
        self.stride: int = shape.stride
        self.set_losses = set_losses
        self.input_proj = nn.Conv2d(shape.channels, hidden_dim, 1)
        self.transformer = Transformer(hidden_dim, num_heads, feedforward_dim, encoder_layers, decoder_layers, dropout)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, self.num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, [hidden_dim, hidden_dim, 4])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from the config.

        Args:
            cfg: Complete config. Uses `MODEL.DETR`, and the keys of the backbone.

        Returns:
            Keyword arguments of the constructor.
        """
        head = cfg.MODEL.DETR
        return {
            **cls.common_arguments(cfg, "DETR"),
            "num_queries": head.NUM_QUERIES,
            "hidden_dim": head.HIDDEN_DIM,
            "num_heads": head.NUM_HEADS,
            "feedforward_dim": head.FEEDFORWARD_DIM,
            "encoder_layers": head.ENCODER_LAYERS,
            "decoder_layers": head.DECODER_LAYERS,
            "dropout": head.DROPOUT,
            "set_losses": SetLosses(
                class_weight=head.CLASS_WEIGHT,
                l1_weight=head.L1_WEIGHT,
                giou_weight=head.GIOU_WEIGHT,
                background_weight=head.BACKGROUND_WEIGHT,
                l1_format="cxcywh",
            ),
        }

    def predict(self, features: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the logits and boxes of the last decoder layer.

        Args:
            features: The feature map, `N×C×H×W`.
            sizes: Sizes of the images without padding, `N×4` as (width, height, width, height) in pixels.

        Returns:
            Logits `N×Q×(K+1)`, with the background last, and boxes `N×Q×4` as (x0, y0, x1, y1) in pixels.
        """
        logits, boxes = self._predict_layers(features[0], sizes)
        return logits[-1], boxes[-1]

    def losses(self, features: list[Tensor], sizes: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        """Compute the losses of all decoder layers.

        Args:
            features: The feature map, `N×C×H×W`.
            sizes: Sizes of the images without padding, `N×4` as (width, height, width, height) in pixels.
            targets: Ground truth of each image, with `gt_boxes` and `gt_classes`.

        Returns:
            Scalars "loss_cls" (cross-entropy), "loss_box_reg" (L1) and "loss_giou".
        """
        return self.set_losses(*self._predict_layers(features[0], sizes), sizes, targets)

    def rank(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select the queries with the highest scores, each with its best class.

        Args:
            logits: Logits of the last layer, `N×Q×(K+1)`.

        Returns:
            Scores `N×D` in descending order, their classes `N×D` and their queries `N×D`. D is `max_detections`, or the
            number of queries if that is less.
        """
        scores, classes = logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        scores, queries = scores.topk(min(self.max_detections, scores.shape[1]), dim=1)
        return scores, classes.gather(1, queries), queries

    def _predict_layers(self, feature: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `L×N×Q×(K+1)` and boxes `L×N×Q×4` of all decoder layers."""
        height, width = feature.shape[2:]
        # A cell is padding if its first pixel is.
        columns, rows = (torch.arange(side, device=feature.device) * self.stride for side in (width, height))
        valid = (rows[:, None] < sizes[:, 1, None, None]) & (columns < sizes[:, 0, None, None])
        positions = sine_positions(valid, self.query_embed.embedding_dim)
        # A copy, because PyTorch's counter of operations fails on modules that take a view of a parameter.
        queries = self.query_embed.weight.repeat(feature.shape[0], 1, 1)
        hidden = self.transformer(self.input_proj(feature), ~valid, positions, queries)
        with torch.autocast(feature.device.type, enabled=False):
            boxes = box_convert(self.bbox_embed(hidden.float()).sigmoid(), "cxcywh", "xyxy") * sizes[:, None]
        return self.class_embed(hidden), boxes


class Transformer(nn.Module):
    """The encoder and the decoder.

    Args:
        dim: Channels, C.
        num_heads: Heads of the attention layers.
        feedforward_dim: Channels of the hidden layers of the MLPs.
        encoder_layers: Number of encoder layers.
        decoder_layers: Number of decoder layers, L.
        dropout: Dropout rate, in [0, 1).
    """

    def __init__(
        self, dim: int, num_heads: int, feedforward_dim: int, encoder_layers: int, decoder_layers: int, dropout: float
    ) -> None:
        super().__init__()
        settings = (dim, num_heads, feedforward_dim, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*settings) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*settings) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(dim)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, feature: Tensor, padding: Tensor, positions: Tensor, queries: Tensor) -> Tensor:
        """Compute the output of each decoder layer.

        Args:
            feature: Feature map, `N×C×H×W`.
            padding: True for cells of the map that are padding, `N×H×W`.
            positions: Position embeddings of the cells, `N×C×H×W`.
            queries: Learned position embeddings of the queries, `N×Q×C`.

        Returns:
            Normalized features of the queries, `L×N×Q×C`.
        """
        memory, positions = (x.flatten(2).transpose(1, 2) for x in (feature, positions))
        padding = padding.flatten(1)
        for layer in self.encoder:
            memory = layer(memory, positions, padding)
        hidden = torch.zeros_like(queries)
        outputs = []
        for layer in self.decoder:
            hidden = layer(hidden, queries, memory, memory + positions, padding)
            outputs.append(self.norm(hidden))
        return torch.stack(outputs)


class EncoderLayer(nn.Module):
    """Self-attention of the cells of the feature map, and an MLP, each followed by a LayerNorm.

    Args:
        dim: Channels, C.
        num_heads: Heads of the attention layer.
        feedforward_dim: Channels of the hidden layer of the MLP.
        dropout: Dropout rate, in [0, 1).
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = _mlp(dim, feedforward_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """Compute the output of the layer.

        Args:
            x: Cells of the feature map, `N×(H·W)×C`.
            positions: Their position embeddings, `N×(H·W)×C`.
            padding: True for cells to ignore, `N×(H·W)`.

        Returns:
            Cells `N×(H·W)×C`.
        """
        placed = x + positions
        attended = self.self_attn(placed, placed, x, key_padding_mask=padding, need_weights=False)[0]
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.mlp(x))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the cells of the feature map, and an MLP.

    Args:
        dim: Channels, C.
        num_heads: Heads of the attention layers.
        feedforward_dim: Channels of the hidden layer of the MLP.
        dropout: Dropout rate, in [0, 1).
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.mlp = _mlp(dim, feedforward_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, placed_memory: Tensor, padding: Tensor) -> Tensor:
        """Compute the output of the layer.

        Args:
            x: Features of the queries, `N×Q×C`.
            queries: Position embeddings of the queries, `N×Q×C`.
            memory: Cells of the feature map, `N×(H·W)×C`.
            placed_memory: Cells with their position embeddings added, `N×(H·W)×C`.
            padding: True for cells to ignore, `N×(H·W)`.

        Returns:
            Features of the queries, `N×Q×C`.
        """
        placed = x + queries
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x, need_weights=False)[0]))
        attended = self.cross_attn(x + queries, placed_memory, memory, key_padding_mask=padding, need_weights=False)[0]
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(x + self.mlp(x))


def _mlp(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
    )


def sine_positions(valid: Tensor, dim: int, *, temperature: float = 10_000.0) -> Tensor:
    """Compute the sine position embeddings of DETR: the first half of the channels for y, the second for x.

    Positions are fractions of the image without its padding, times 2π.

    Args:
        valid: False for cells that are padding, `N×H×W`.
        dim: Channels, C, a multiple of 4.
        temperature: Ratio of the longest to the shortest wavelength.

    Returns:
        Embeddings `N×C×H×W`, fp32.
    """
    steps = torch.arange(dim // 4, device=valid.device) * 4 / dim
    angles = []
    for axis in (1, 2):
        position = valid.cumsum(axis, dtype=torch.float32)
        position = position / (position.amax(axis, keepdim=True) + 1e-6) * 2 * math.pi
        angle = position[..., None] / temperature**steps
        angles.append(torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2))
    return torch.cat(angles, dim=-1).permute(0, 3, 1, 2)
