"""The config keys of the one-stage detectors that this package adds, ATSS and GFL."""

from __future__ import annotations

from pvt_det.config.rows import BOX_WEIGHTS, CLASSES, COUNT, NAMES, RATE, SHARE, WEIGHT, Row
from pvt_det.config.rules import choice, integer, number

_EXPONENT = number(at_least=0, at_most=10)


def _rows(head: str) -> list[Row]:
    """Return the rows that both heads have.

    Args:
        head: Name of the section of MODEL.
    """
    return [
        Row(f"MODEL.{head}.NUM_CLASSES", CLASSES, "Number of classes. Training sets it from the data's classes.", 80),
        Row(
            f"MODEL.{head}.IN_FEATURES",
            NAMES,
            "Feature maps with anchors, from fine to coarse.",
            ["p3", "p4", "p5", "p6", "p7"],
        ),
        Row(
            f"MODEL.{head}.NUM_CONVS",
            integer(1, 64),
            "Convolutions of each branch of the head, before the last one.",
            4,
        ),
        Row(f"MODEL.{head}.NORM", choice(("GN", "")), "Normalization in the head: GroupNorm or none.", "GN"),
        Row(
            f"MODEL.{head}.PRIOR_PROB",
            number(above=0, below=1),
            "Score of all anchors at the start of training.",
            0.01,
        ),
        Row(
            f"MODEL.{head}.ANCHOR_CANDIDATES",
            integer(1, 1000),
            "Number of anchors of each level, the closest to the center of a box, that can be matched with it.",
            9,
        ),
        Row(f"MODEL.{head}.BOX_LOSS_WEIGHT", WEIGHT, "Weight of the GIoU loss of the boxes.", 2.0),
        Row(f"MODEL.{head}.SCORE_THRESH_TEST", RATE, "Smallest class score of a detection.", 0.05),
        Row(f"MODEL.{head}.TOPK_CANDIDATES_TEST", COUNT, "Best candidates of each level that enter NMS.", 1000),
        Row(
            f"MODEL.{head}.NMS_THRESH_TEST",
            SHARE,
            "IoU above which NMS removes the lower score; 1 removes none.",
            0.6,
        ),
    ]


ATSS_KEYS = [
    *_rows("ATSS"),
    Row(
        "MODEL.ATSS.BBOX_REG_WEIGHTS",
        BOX_WEIGHTS,
        "Factors of the box offsets dx, dy, dw and dh.",
        (10.0, 10.0, 5.0, 5.0),
    ),
    Row("MODEL.ATSS.FOCAL_LOSS_GAMMA", _EXPONENT, "Exponent of the focal loss.", 2.0),
    Row(
        "MODEL.ATSS.FOCAL_LOSS_ALPHA",
        number(above=0, below=1),
        "Weight of objects in the focal loss. The weight of the background is 1 - alpha.",
        0.25,
    ),
    Row("MODEL.ATSS.CENTERNESS_LOSS_WEIGHT", WEIGHT, "Weight of the centerness loss.", 1.0),
]
GFL_KEYS = [
    *_rows("GFL"),
    Row(
        "MODEL.GFL.REG_MAX",
        integer(1, 1000),
        "Largest distance between an anchor's center and a side of its box, in strides. The distribution of a side has "
        "one more value.",
        16,
    ),
    Row("MODEL.GFL.QUALITY_FOCAL_BETA", _EXPONENT, "Exponent of the quality focal loss.", 2.0),
    Row("MODEL.GFL.DISTRIBUTION_LOSS_WEIGHT", WEIGHT, "Weight of the distribution focal loss of the boxes.", 0.25),
]
