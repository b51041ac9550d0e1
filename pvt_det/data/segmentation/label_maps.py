"""Label maps: images whose pixel values are class numbers."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode

from pvt_det.config.architecture import has_label_maps
from pvt_det.data.images import check_size, read_labels
from pvt_det.errors import DataError


@dataclass(frozen=True)
class LabelMaps:
    """Reads and checks the label maps of a data set.

    Attributes:
        num_classes: K; classes are 0 … K-1.
        ignore_label: value of pixels that belong to no class, at most 255.
    """

    num_classes: int
    ignore_label: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LabelMaps | None:
        """The label maps that the model is trained on; None for a detector, which takes none."""
        if not has_label_maps(cfg):
            return None
        return cls(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)

    def read(self, path: str | os.PathLike[str], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read a label map, `H×W`.

        Args:
            path: the file.
            size: width and height that it must have, its image's.

        Raises:
            DataError: the file is missing, broken, in colour, of another size, or holds other values.
        """
        labels = read_labels(path)
        check_size(path, (labels.shape[1], labels.shape[0]), size)
        highest = int(np.max(labels, where=labels != self.ignore_label, initial=0))
        if highest >= self.num_classes:
            raise DataError(
                f"label map {path} holds the value {highest}; expected classes 0 to {self.num_classes - 1}, or "
                f"{self.ignore_label} to ignore. Set MODEL.SEM_SEG_HEAD.NUM_CLASSES to the number of classes; ADE20K's "
                "own files are first converted by datasets/prepare_ade20k.py"
            )
        return labels
