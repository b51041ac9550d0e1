"""Spot checks of the published results, and a config for every published row."""

import dataclasses

import pytest

from pvt_det.classification.config import load_train_config
from pvt_det.classification.config import recipe_digest as classifier_digest
from pvt_det.config import load_config
from pvt_det.config.digest import recipe_digest
from pvt_det.models import list_models
from pvt_det.reports.published import find_published, published_classifier, published_results


@pytest.mark.parametrize(
    ("config", "box", "mask"),
    [
        ("retinanet_pvt_tiny", 36.7, None),
        ("retinanet_pvt_large_3x", 43.4, None),
        ("mask_rcnn_pvt_small", 40.4, 37.8),
        ("mask_rcnn_R_50_3x", 41.0, 37.1),
        ("retinanet_pvt_v2_b2_li", 43.6, None),
        ("mask_rcnn_R_18_3x", 36.9, 33.6),
        ("mask_rcnn_R_101_3x", 42.8, 38.5),
        ("mask_rcnn_pvt_v2_b0_3x", 41.6, 38.2),
        ("mask_rcnn_pvt_v2_b2_3x", 47.8, 43.1),
        ("cascade_mask_rcnn_pvt_v2_b2_li", 50.9, 44.0),
        ("retinanet_pvt_small_640", 38.7, None),
        ("atss_pvt_v2_b2_3x", 49.9, None),
        ("gfl_pvt_v2_b2_li_3x", 49.2, None),
        ("retinanet_swin_t", 41.5, None),
        ("detr_pvt_small", 34.7, None),
        ("detr_R_50", 32.3, None),
        ("sparse_rcnn_pvt_v2_b2", 50.1, None),
        ("sparse_rcnn_pvt_v2_b2_li", 48.9, None),
        ("retinanet_poolformer_s24", 38.9, None),
    ],
)
def test_rows(config, box, mask):
    row = next(row for row in published_results() if row.config == config)
    assert row.box["AP"] == box
    assert row.mask.get("AP") == mask


def test_rows_are_unique_and_have_configs_and_sources(repo_root):
    rows = published_results()
    names = [row.config for row in rows]
    assert len(set(names)) == len(names) == 81
    assert all(row.source for row in rows)
    missing = [name for name in names if not (repo_root / "configs" / f"{name}.yaml").is_file()]
    assert missing == []


def test_semantic_segmentation_rows_are_on_ade20k():
    rows = [row for row in published_results() if row.dataset != "coco_2017_val"]
    found = {row.config: row.value("sem_seg", "mIoU") for row in rows}
    assert found == {
        "semantic_fpn_R_18": 32.9,
        "semantic_fpn_R_50": 36.7,
        "semantic_fpn_R_101": 38.8,
        "semantic_fpn_X_101_32x4d": 39.7,
        "semantic_fpn_X_101_64x4d": 40.2,
        "semantic_fpn_pvt_tiny": 36.6,
        "semantic_fpn_pvt_small": 41.9,
        "semantic_fpn_pvt_medium": 43.5,
        "semantic_fpn_pvt_large": 43.5,
        "semantic_fpn_pvt_v2_b0": 37.2,
        "semantic_fpn_pvt_v2_b1": 42.5,
        "semantic_fpn_pvt_v2_b2": 45.2,
        "semantic_fpn_pvt_v2_b2_li": 45.1,
        "semantic_fpn_pvt_v2_b3": 47.3,
        "semantic_fpn_pvt_v2_b4": 47.9,
        "semantic_fpn_pvt_v2_b5": 48.7,
    }
    assert {row.dataset for row in rows} == {"ade20k_sem_seg_val"}
    assert rows[0].value("bbox", "AP") is None


def test_classifiers():
    row = published_classifier("pvt_v2_b2_li")
    assert (row.value("classification", "top1"), row.dataset) == (82.1, "imagenet1k_val")
    assert row.value("bbox", "AP") is None
    assert all(published_classifier(name).source for name in list_models())


def test_rows_are_found_by_the_recipe(repo_root):
    """If a recipe changes on purpose, write its new digest to published.json."""
    configs = repo_root / "configs"
    for row in published_results():
        assert find_published(recipe_digest(load_config(configs / f"{row.config}.yaml"))) is row, row.config
    for name in list_models():
        recipe = load_train_config(configs / f"classification/{name}.yaml")
        assert find_published(classifier_digest(recipe)) == published_classifier(name), name
        assert find_published(classifier_digest(dataclasses.replace(recipe, epochs=100))) is None


def test_unknown_recipe_has_no_row(repo_root):
    assert find_published("") is None
    assert find_published(recipe_digest(load_config(repo_root / "configs/shapes/retinanet_pvt_tiny.yaml"))) is None
