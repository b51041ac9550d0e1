"""Lines contrast with any background and grow with the image, labels do not cover each other, neighbors differ."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hotcoco import mask as mask_util

from pvt_det.utils.colors import luminance, object_colors
from pvt_det.utils.plates import place_labels
from pvt_det.utils.visualizer import class_colors, draw, draw_labels, sheet

NAMES = ("cat", "dog", "bird")


def thing(box, category=0, **more) -> dict:
    return {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, **more}


def plain(color, size=(480, 640)) -> np.ndarray:
    return np.full((*size, 3), color, np.uint8)


def opaque(objects, names=NAMES, size=(480, 640), width=None) -> np.ndarray:
    """Return which pixels of a drawing do not depend on the image below them."""
    first, second = (draw(plain(color, size), objects, names, width or size[1]) for color in (10, 250))
    return (first == second).all(axis=2)


def contrast(first, second) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_sheet_pads_rows_with_white() -> None:
    result = sheet([np.zeros((h, w, 3), np.uint8) for h, w in ((4, 6), (2, 6), (3, 5))], columns=2)
    assert result.shape == (4 + 4 + 3, 6 + 4 + 6, 3)
    assert (result[:, 6:10] == 255).all()
    assert (result[2:4, 10:] == 255).all()
    assert (result[8:, :5] == 0).all()


def test_box_lines_contrast_with_any_background() -> None:
    """Either the line or its rim does, on black, white, grass, gray, and on the colors of the lines themselves."""
    # Three boxes of each class within each other, so that all shades occur.
    objects = [thing((100 + 20 * k, 60 + 20 * k, 540 - 20 * k, 420 - 20 * k), k % 3) for k in range(9)]
    own = object_colors(np.array([o["bbox"] for o in objects], float), [o["category_id"] for o in objects], 3)
    assert len(set(own)) == 9
    others = np.random.default_rng(0).integers(0, 256, (50, 3)).tolist()
    for color in [(0, 0, 0), (255,) * 3, (128,) * 3, (74, 122, 38), *own, *others]:
        drawn = draw(plain(color), objects, [""] * 3, 640)
        for shown in objects:
            x1, _, x2, y2 = shown["bbox"]
            for part in (drawn[240, x1 - 6 : x1 + 6], drawn[240, x2 - 6 : x2 + 6], drawn[y2 - 6 : y2 + 6, 320]):
                assert max(contrast(pixel, color) for pixel in part.tolist()) > 2.5


def test_box_lines_are_opaque_and_lie_on_the_edges_of_the_box() -> None:
    lines = opaque([thing((100, 100, 300, 250))])
    for edge in (lines[200, 80:120], lines[200, 280:320], lines[230:270, 150]):
        assert 3 <= edge.sum() <= 8
        assert edge[17:23].sum() >= 3
    assert not lines[130:240, 110:290].any()
    assert not lines[:, 310:].any()


@pytest.mark.parametrize("box", [(0, 0, 640, 480), (-50, -50, 900, 900), (600, 440, 700, 600), (0, 0, 3, 3)])
def test_boxes_and_labels_at_the_border_are_completely_visible(box) -> None:
    lines = opaque([thing(box)], [""])
    x1, y1, x2, y2 = (int(np.clip(value, 0, limit)) for value, limit in zip(box, (640, 480) * 2, strict=True))
    left, right, bottom = lines[(y1 + y2) // 2, :].nonzero()[0], lines[(y1 + y2) // 2, ::-1].nonzero()[0], lines[y2 - 1]
    assert abs(left.min() - x1) <= 3
    assert abs(639 - right.min() - (x2 - 1)) <= 3
    assert bottom.any()
    assert opaque([thing(box, score=0.5)]).sum() - lines.sum() > 30 * 12  # the label


def test_lines_and_text_grow_with_the_image() -> None:
    heights, widths = [], []
    for factor in (1, 4, 8):
        objects = [thing(factor * np.array((100, 100, 300, 250)))]
        lines = opaque(objects, size=(480 * factor, 640 * factor))
        widths.append(lines[200 * factor, 200 * factor : 400 * factor].sum())
        heights.append(lines[: 100 * factor, 104 * factor].sum())
    assert 3 <= widths[0] <= 6
    assert 12 <= heights[0] <= 24
    for factor, width, height in zip((4, 8), widths[1:], heights[1:], strict=True):
        assert width > 0.6 * factor * widths[0]
        assert height > 0.6 * factor * heights[0]


def test_lines_of_small_pictures_show_their_color() -> None:
    picture = draw(np.full((240, 320, 3), 128, np.uint8), [thing((40, 40, 140, 120))], ["thing"], 320)
    color = object_colors(np.array([[40, 40, 140, 120]]), [0], 1)[0]
    across = picture[90, 30:50].tolist()
    assert across.count(list(color)) == 2
    assert across.count([128, 128, 128]) == 20 - 2 - 2  # a pixel of rim on each side


def test_small_boxes_are_not_hidden_by_their_lines() -> None:
    lines = opaque([thing((3000, 2000, 3030, 2030))], ("",), size=(4000, 6000))
    assert not lines[2008:2022, 3008:3022].any()


@pytest.mark.parametrize("seed", range(20))
def test_labels_do_not_cover_each_other(seed) -> None:
    rng = np.random.default_rng(seed)
    for count, has_room in ((1, True), (12, True), (300, False)):
        corners = rng.uniform(-20, (600, 440), (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(1, 300, (count, 2))], axis=1)
        sizes = [(int(width), 18) for width in rng.integers(20, 110, count)]
        places = place_labels(boxes, sizes, (640, 480))
        taken = np.zeros((480, 640), int)
        for place, (width, height) in zip(places, sizes, strict=True):
            if place is not None:
                left, top = place
                assert min(left, top) >= 0
                assert left + width <= 640
                assert top + height <= 480
                taken[top : top + height, left : left + width] += 1
        assert taken.max() == 1
        assert places[-1] is not None  # the object on top
        assert None not in places or not has_room


def test_labels_avoid_other_objects() -> None:
    above, box = (100, 40, 300, 98), (100, 100, 300, 250)
    (_, place) = place_labels(np.array([above, box], float), [(0, 0), (60, 18)], (640, 480))
    assert place is not None
    assert place[1] >= 100
    assert place_labels(np.array([box], float), [(60, 18)], (640, 480)) == [(100, 82)]


def test_long_names_are_shortened_to_the_image() -> None:
    drawn = draw(plain(0, (60, 90)), [thing((5, 30, 80, 55))], ["a very long name " * 20], 90)
    assert drawn.shape == (60, 90, 3)
    assert opaque([thing((5, 30, 80, 55))], ["a very long name " * 20], (60, 90))[:25].any()
    # No text fits at all.
    assert draw(plain(0, (8, 8)), [thing((1, 1, 7, 7))], ["name"], 8).shape == (8, 8, 3)


def test_neighbors_of_one_class_have_different_colors() -> None:
    row = np.array([(50 * k, 0, 50 * k + 48, 40) for k in range(10)], float)
    for count in (1, 3):
        colors = object_colors(row, [0] * 10, count)
        assert all(first != second for first, second in pairwise(colors))
    apart = row + np.arange(10)[:, None] * (50, 0, 50, 0)
    assert len(set(object_colors(apart, [0] * 10, 3))) == 1
    touching = object_colors(row, [0, 1] * 5, 3)
    assert len(set(touching)) == 2
    assert len(set(object_colors(row, [0] * 10, 3, distinct=False))) == 1
    assert len(set(object_colors(row, range(10), 10, distinct=False))) == 10
    assert object_colors(np.zeros((0, 4)), [], 3) == []


def test_masks_are_tinted_with_holes_at_any_scale() -> None:
    ring = np.zeros((48, 64), np.uint8)
    ring[10:40, 10:50] = 1
    ring[20:30, 20:40] = 0
    rle = mask_util.encode(np.asfortranarray(ring))
    runs = np.diff(np.flatnonzero(np.diff(ring.ravel("F"), prepend=1 - ring[0, 0], append=2)))
    raw = {"size": [48, 64], "counts": [int(run) for run in runs]}
    shown = (10, 10, 50, 40)
    for segmentation in (rle, raw):
        for scale in (1, 10, 2.5):
            drawn = draw(plain(0, (48, 64)), [thing(shown, segmentation=segmentation)], ["", ""], int(64 * scale))
            assert drawn[int(15 * scale), int(30 * scale)].max() > 80
            assert drawn[int(25 * scale), int(30 * scale)].max() == 0
            assert drawn[int(45 * scale), int(30 * scale)].max() == 0
    reduced = draw(plain(0, (48, 64)), [thing(shown, segmentation=rle)], ["", ""], 32)
    assert reduced[5:10, 5:10].max() > 80
    assert reduced[22:, 15].max() == 0


def test_polygons_are_filled_where_they_overlap() -> None:
    parts = [[100, 100, 300, 100, 300, 200, 100, 200], [200, 150, 400, 150, 400, 300, 200, 300]]
    objects = [thing((100, 100, 400, 300), segmentation=parts), thing((500, 300, 600, 400), 1)]
    drawn = draw(plain(0), objects, NAMES, 640)
    for row, column in ((120, 120), (175, 250), (280, 380)):
        assert drawn[row, column].max() > 80
    assert drawn[280, 130].max() == 0
    assert drawn[350, 550].max() == 0  # the object without a mask
    empty = {"size": [480, 640], "counts": [480 * 640]}
    assert draw(plain(0), [thing((5, 5, 9, 9), segmentation=empty)], NAMES, 640).any()


def test_objects_with_broken_boxes_can_be_drawn() -> None:
    boxes = [
        (300, 200, 100, 100),
        (-500, -500, -400, -400),
        (900, 900, 1000, 1000),
        (50, 50, 50, 50),
        (1e9, 0, -1e9, 1),
    ]
    assert draw(plain(0), [thing(box) for box in boxes], NAMES, 640).any()


def test_image_is_not_changed_and_keeps_its_proportions() -> None:
    image = plain(7, (50, 101))
    image.flags.writeable = False
    draw(image, [thing((5, 5, 40, 40))], NAMES, 101)
    assert np.array_equal(draw(image, [], NAMES, 101), image)
    assert draw(image, [], NAMES, 640).shape == (316, 640, 3)
    assert draw(image, [], NAMES, 640, longest=202).shape == (100, 202, 3)


def test_label_map_is_tinted_and_named() -> None:
    labels = np.full((480, 640), 255, np.uint8)
    labels[:, :200], labels[:240, 200:400] = 1, 2
    drawn = draw_labels(plain(100), labels, ["sky", "road", "tree"], 640)
    colors = class_colors()
    for (row, column), index in (((400, 50), 1), ((50, 250), 2)):
        assert drawn[row, column].tolist() == pytest.approx(50 + colors[index] / 2, abs=2)
    assert (drawn[:, 420:] == 100).all()
    # A name on an opaque plate in the middle of each class, and opaque lines along the border.
    other = draw_labels(plain(200), labels, ["sky", "road", "tree"], 640)
    fixed = (drawn == other).all(axis=2)
    assert fixed[200:280, 60:140].sum() > 200
    assert fixed[100:140, 260:340].sum() > 200
    assert fixed[50, 190:210].sum() >= 3
    assert not fixed[:, 30].any()
    assert np.array_equal(draw_labels(plain(100), labels, [], 640), plain(100))


def test_small_label_maps_are_enlarged() -> None:
    assert draw_labels(np.zeros((5, 2, 3), np.uint8), np.zeros((5, 2), np.uint8), ["a"], 64).shape == (160, 64, 3)
