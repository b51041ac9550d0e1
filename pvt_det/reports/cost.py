"""Cost of a run's detector at the size of the images that it is tested on."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import build_model

from pvt_det.config import load_config
from pvt_det.data.augmentation.transforms import ResizeShortSide, build_detection_augmentations
from pvt_det.data.coco.annotations import read_json
from pvt_det.errors import PvtDetError
from pvt_det.models.complexity import count_gmacs

logger = logging.getLogger(__name__)


def describe_gmacs(config_file: str | Path, annotations: str | Path) -> str:
    """Multiply-accumulates of one image, in units of 10⁹, with the input's size, such as "143.2 (800x1067)".

    The image is a grey one of the data set's median size, resized as for testing; heads whose work depends on what
    is found in an image thus count near their least. "-" where the config or the annotations cannot be used.

    Args:
        config_file: the `config.yaml` of a run.
        annotations: COCO-format annotations of the images it is tested on.
    """
    try:
        cfg = load_config(config_file, ["MODEL.DEVICE", "cpu"])
        images = read_json(annotations)["images"]
        sizes = np.array([(image["height"], image["width"]) for image in images])
        height, width = (int(side) for side in np.median(sizes, axis=0))
        resize = build_detection_augmentations(cfg, is_train=False)[-1]
        assert isinstance(resize, ResizeShortSide)
        grey = np.full((height, width, 3), 128, dtype=np.uint8)
        image = torch.as_tensor(resize.get_transform(grey).apply_image(grey).transpose(2, 0, 1))
        model = build_model(cfg)
    except (PvtDetError, KeyError, TypeError, ValueError) as error:
        logger.warning("GMACs not counted: %s", error)
        return "-"
    gmacs = count_gmacs(model, [{"image": image, "height": height, "width": width}])
    return f"{gmacs:.1f} ({image.shape[1]}x{image.shape[2]})"
