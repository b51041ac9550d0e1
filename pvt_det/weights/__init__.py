"""Weights: where they are, how they are read, and the one strict way into a model."""

from pvt_det.weights.loader import load_pretrained, load_translation, read_checkpoint, read_translation
from pvt_det.weights.report import LoadReport
from pvt_det.weights.writer import save_checkpoint, save_safetensors, to_ours, to_published

__all__ = [
    "LoadReport",
    "load_pretrained",
    "load_translation",
    "read_checkpoint",
    "read_translation",
    "save_checkpoint",
    "save_safetensors",
    "to_ours",
    "to_published",
]
