"""Drawings equal those of Detectron2."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from hotcoco import mask as mask_util

from pvt_det.utils import visualizer as pictures
from pvt_det.utils.visualizer import class_colors, draw, draw_labels, sheet


def test_sheet_pads_rows_with_white() -> None:
    result = sheet([np.zeros((h, w, 3), np.uint8) for h, w in ((4, 6), (2, 6), (3, 5))], columns=2)
    assert result.shape == (4 + 4 + 3, 6 + 4 + 6, 3)
    assert (result[:, 6:10] == 255).all()
    assert (result[2:4, 10:] == 255).all()
    assert (result[8:, :5] == 0).all()


@pytest.mark.parametrize(("height", "width", "drawn"), [(33, 47, 640), (97, 101, 384), (48, 64, 64)])
def test_drawings_equal_detectron2(height: int, width: int, drawn: int) -> None:
    """All pixels are equal at integer and fractional scales, although matplotlib does not draw the image."""
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    ring = np.zeros((height, width), np.uint8)
    ring[5:30, 5:30] = 1
    ring[12:20, 12:20] = 0
    rle = mask_util.encode(np.asfortranarray(ring))
    shown = {"bbox": [5, 5, 30, 30], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "segmentation": rle}
    visualizer = Visualizer(image, scale=drawn / width)
    visualizer.overlay_instances(
        boxes=np.array([[5, 5, 30, 30]]),
        masks=[rle],
        labels=["dog"],
        assigned_colors=[colormap(rgb=True, maximum=1)[1]],
    )
    wanted = visualizer.output.get_image()
    assert np.array_equal(draw(image, [shown], ["cat", "dog"], drawn), wanted)
    labels = np.where(ring, np.uint8(1), np.uint8(255))
    visualizer = Visualizer(image, scale=drawn / width)
    visualizer.draw_binary_mask(ring, class_colors()[1] / 255, text="dog", area_threshold=0)
    wanted = visualizer.output.get_image()
    assert np.abs(draw_labels(image, labels, ["cat", "dog"], drawn).astype(int) - wanted).max() <= 2


def test_large_label_maps_are_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_MAX_LABELED_PIXELS", 60 * 40)
    labels = np.zeros((80, 120), np.uint8)
    labels[:, 60:] = 255
    result = draw_labels(np.zeros((80, 120, 3), np.uint8), labels, ["a"], 120)
    assert result.shape == (40, 60, 3)
    assert result[3, 3].tolist() == pytest.approx(class_colors()[0] / 2, abs=2)
    assert result[:, 32:].max() == 0
    assert draw_labels(np.zeros((5, 2, 3), np.uint8), np.zeros((5, 2), np.uint8), ["a"], 64).shape == (160, 64, 3)
