"""Config keys of the detectors without anchors and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pvt_det.config.architecture import head_key
from pvt_det.config.rows import NAMES, RATE, SHARE, Limit, Row
from pvt_det.config.rules import integer, number

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_CLASSES = integer(1, 100_000)
_COUNT = integer(1, 10_000)
_CHANNELS = integer(1, 65_536)
_LAYERS = integer(1, 64)
_WEIGHT = number(at_least=0, at_most=1000)
_MATCHED = "Its cost in the matching has the same weight."


def _divides(section: str, channels_key: str) -> Limit:
    def applies(cfg: CfgNode) -> bool:
        return head_key(cfg) == section

    return Limit(
        channels_key,
        lambda heads, channels: channels % heads == 0,
        "a divisor of",
        applies,
        "Each head has the same number of channels.",
    )


def _common(section: str, features: Sequence[str]) -> list[Row]:
    key = f"MODEL.{section}"
    return [
        Row(f"{key}.NUM_CLASSES", _CLASSES, "Number of classes. Training sets it from the data's classes.", 80),
        Row(f"{key}.IN_FEATURES", NAMES, "Feature maps that the head uses, from fine to coarse.", list(features)),
        Row(f"{key}.SCORE_THRESH_TEST", RATE, "Smallest score of a detection.", 0.0),
        Row(
            f"{key}.NMS_THRESH_TEST",
            SHARE,
            "IoU above which NMS removes the lower score where detections of several tiles or augmented copies of an "
            "image are merged. The model itself has no NMS.",
            0.7,
        ),
    ]


def _weights(section: str, *, l1: float, giou: float, note: str) -> list[Row]:
    key = f"MODEL.{section}"
    return [
        Row(f"{key}.L1_WEIGHT", _WEIGHT, f"Weight of the L1 loss of the boxes. {note}".rstrip(), l1),
        Row(f"{key}.GIOU_WEIGHT", _WEIGHT, f"Weight of the generalized IoU loss. {note}".rstrip(), giou),
    ]


def _transformer(section: str, *, feedforward: int, encoder: int) -> list[Row]:
    key = f"MODEL.{section}"
    return [
        Row(f"{key}.HIDDEN_DIM", _CHANNELS, "Channels of the encoder and the decoder.", 256),
        Row(f"{key}.NUM_HEADS", _COUNT, "Heads of the attention layers.", 8, _divides(section, f"{key}.HIDDEN_DIM")),
        Row(f"{key}.FEEDFORWARD_DIM", _CHANNELS, "Channels of the hidden layers of the MLPs.", feedforward),
        Row(f"{key}.ENCODER_LAYERS", _LAYERS, "Number of encoder layers.", encoder),
        Row(f"{key}.DECODER_LAYERS", _LAYERS, "Number of decoder layers.", 6),
    ]


QUERY_KEYS: dict[str, list[Row]] = {
    "DETR": [
        *_common("DETR", ["stage4"]),
        Row("MODEL.DETR.NUM_QUERIES", _COUNT, "Number of queries, each of which predicts one box.", 100),
        *_transformer("DETR", feedforward=2048, encoder=6),
        Row("MODEL.DETR.DROPOUT", RATE, "Dropout rate of the encoder and the decoder.", 0.1),
        Row("MODEL.DETR.CLASS_WEIGHT", _WEIGHT, f"Weight of the cross-entropy of the classes. {_MATCHED}", 1.0),
        *_weights("DETR", l1=5.0, giou=2.0, note=_MATCHED),
        Row(
            "MODEL.DETR.BACKGROUND_WEIGHT",
            number(above=0, at_most=1),
            "Weight of queries without an object in the cross-entropy.",
            0.1,
        ),
    ],
    "RT-DETRv2": [
        *_common("RT_DETR", ["stage2", "stage3", "stage4"]),
        Row("MODEL.RT_DETR.NUM_QUERIES", _COUNT, "Number of queries, each of which predicts one box.", 300),
        *_transformer("RT_DETR", feedforward=1024, encoder=1),
        Row(
            "MODEL.RT_DETR.NUM_DENOISING",
            integer(0, 10_000),
            "Number of additional queries in training that reconstruct boxes with noise; 0 disables them.",
            100,
        ),
        Row("MODEL.RT_DETR.CLASS_WEIGHT", _WEIGHT, "Weight of the varifocal loss of the classes.", 1.0),
        *_weights("RT_DETR", l1=5.0, giou=2.0, note=""),
    ],
    "Sparse R-CNN": [
        *_common("SPARSE_RCNN", ["p2", "p3", "p4", "p5"]),
        Row(
            "MODEL.SPARSE_RCNN.NUM_PROPOSALS",
            _COUNT,
            "Number of learned proposals, each of which predicts one box.",
            300,
        ),
        Row("MODEL.SPARSE_RCNN.NUM_STAGES", _LAYERS, "Number of stages that refine the proposals.", 6),
        Row(
            "MODEL.SPARSE_RCNN.NUM_HEADS",
            _COUNT,
            "Heads of the attention between proposals.",
            8,
            _divides("SPARSE_RCNN", "MODEL.FPN.OUT_CHANNELS"),
        ),
        Row("MODEL.SPARSE_RCNN.FEEDFORWARD_DIM", _CHANNELS, "Channels of the hidden layers of the MLPs.", 2048),
        Row("MODEL.SPARSE_RCNN.DYNAMIC_DIM", _CHANNELS, "Channels between the two layers of a dynamic head.", 64),
        Row("MODEL.SPARSE_RCNN.DROPOUT", RATE, "Dropout rate of the stages.", 0.0),
        Row(
            "MODEL.SPARSE_RCNN.POOLER_RESOLUTION",
            integer(1, 64),
            "Side of the features that ROIAlign extracts for a box.",
            7,
        ),
        Row(
            "MODEL.SPARSE_RCNN.POOLER_SAMPLING_RATIO",
            integer(0, 64),
            "Samples of ROIAlign per bin and axis; 0 adapts them to the size of the box.",
            2,
        ),
        Row("MODEL.SPARSE_RCNN.CLASS_WEIGHT", _WEIGHT, f"Weight of the focal loss of the classes. {_MATCHED}", 2.0),
        *_weights("SPARSE_RCNN", l1=5.0, giou=2.0, note=_MATCHED),
    ],
}
