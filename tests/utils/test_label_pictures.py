"""Painted label maps: distinct colors, striped void, red errors, and a legend of what is shown."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pvt_det.utils.colors import class_colors
from pvt_det.utils.label_pictures import VOID_NAME, draw_legend, legend_entries, paint, paint_errors, shrink

GRAY = np.full((20, 20, 3), 120, np.uint8)


def test_colors_are_distinct_and_not_gray():
    colors = class_colors()
    assert colors.shape == (256, 3)
    lab = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=2) + 1000 * np.eye(256)
    assert distances.min() > 5
    assert distances[:20, :20].min() > 25  # far more than the threshold of human vision, about 2.3
    assert np.hypot(lab[:, 1], lab[:, 2]).min() > 25


def test_void_is_striped_and_classes_are_colored():
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 11
    painted = paint(GRAY, labels, 11).astype(int)
    assert len(np.unique(painted[:, :10].reshape(-1, 3), axis=0)) == 1
    assert painted[0, 0] == pytest.approx(0.35 * 120 + 0.65 * class_colors()[0], abs=1)
    void = painted[:, 10:]
    assert (void == void[:, :, :1]).all()  # gray
    assert len(np.unique(void)) == 2
    other = paint(GRAY, labels, 255)[:, 10:]
    assert len(np.unique(other.reshape(-1, 3), axis=0)) == 1  # 11 is a class there


def test_errors_are_red_except_in_void():
    truth, predicted = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    truth[:5] = 255
    predicted[:, 10:] = 1
    marked = paint_errors(GRAY, truth, predicted, 255).astype(int)
    is_red = marked[:, :, 0] - marked[:, :, 1] > 60
    assert is_red[5:, 10:].all()
    assert not is_red[:5].any()
    assert not is_red[:, :10].any()


def test_shrink_keeps_the_labels():
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 15:] = 7
    image, (small,) = shrink(np.zeros((20, 30, 3), np.uint8), (labels,), 12)
    assert image.shape == (8, 12, 3)
    assert np.unique(small).tolist() == [0, 7]


def test_legend_lists_what_occurs():
    labels = np.array([[0, 1, 1, 1], [0, 1, 5, 9]])
    colors = class_colors().tolist()
    entries = [("car", colors[1]), ("road", colors[0]), ("5", colors[5]), (VOID_NAME, None)]
    assert legend_entries([labels], ["road", "car"], 9) == entries
    drawn = draw_legend([("car", colors[1]), (VOID_NAME, None)], 300)
    assert drawn.shape[1] == 300
    assert (drawn == class_colors()[1]).all(axis=2).sum() == 14 * 14
    assert (
        draw_legend([(f"a class {number}", colors[number]) for number in range(9)], 300).shape[0] > 2 * drawn.shape[0]
    )
    assert draw_legend([], 300).shape[1] == 300
    many = [("a", colors[0])] * 40
    assert len(draw_legend([*many, many[0]], 300)) - len(draw_legend(many, 300)) == 22  # "… and 1 other classes"
