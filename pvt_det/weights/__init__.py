"""Find, read, convert, load and save model weights."""

from pvt_det.weights.loader import load_pretrained, read_checkpoint, read_translation
from pvt_det.weights.matching import LoadReport
from pvt_det.weights.translate import rename
from pvt_det.weights.writer import save_checkpoint, save_safetensors

__all__ = [
    "LoadReport",
    "load_pretrained",
    "read_checkpoint",
    "read_translation",
    "rename",
    "save_checkpoint",
    "save_safetensors",
]
