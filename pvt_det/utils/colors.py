"""Colors of classes that are easy to tell apart."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

_CLASSES = 256
_LEVELS = 14  # of red, green and blue, of which the candidates are mixed
# Lightness and chroma of the candidates in CIELAB. Dark, pale and gray colors are hard to see on photographs, and gray
# means "no class".
_LIGHTNESS, _MIN_CHROMA = (30, 88), 30


@functools.cache
def class_colors() -> NDArray[np.uint8]:
    """Return the colors of 256 classes, `256×3` RGB, each as different as possible from those before it.

    Differences are distances in CIELAB, as in Glasbey et al., Colour displays for categorical images (2007). The array
    is shared and cannot be written to.
    """
    levels = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = cv2.cvtColor(candidates[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    is_usable = (lab[:, 0] > _LIGHTNESS[0]) & (lab[:, 0] < _LIGHTNESS[1]) & (np.hypot(*lab[:, 1:].T) > _MIN_CHROMA)
    candidates, lab = candidates[is_usable], lab[is_usable]
    distances = np.linalg.norm(lab - (50, 0, 0), axis=1)
    chosen = []
    for _ in range(_CLASSES):
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    colors = candidates[chosen]
    colors.setflags(write=False)
    return colors
