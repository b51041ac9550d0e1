"""What a config's model is for, which the config's checks, the data and the engine all ask."""

from __future__ import annotations

from detectron2.config import CfgNode

SEGMENTOR = "SemanticSegmentor"


def is_segmentor(cfg: CfgNode) -> bool:
    """Whether a config's model gives every pixel a class, and finds no objects."""
    return cfg.MODEL.META_ARCHITECTURE == SEGMENTOR
