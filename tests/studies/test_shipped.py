"""The studies that come with this package: each loads, has a plan, and follows the recipes of its papers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvt_det.config.digest import recipe_digest
from pvt_det.recipes import list_studies
from pvt_det.reports.published import find_published
from pvt_det.studies.jobs import study_jobs
from pvt_det.studies.plan_table import as_plan
from pvt_det.studies.run import plan_study
from pvt_det.studies.state import State
from pvt_det.studies.study import load_study
from pvt_det.utils.tables import render
from pvt_det.weights.catalog import CATALOG, DETECTORS

PAPERS = ("paper_retinanet", "paper_mask_rcnn", "paper_semantic_fpn", "pvt_v2")
# Recipes without a published result in `published.json`.
UNPUBLISHED = {"mask_rcnn_pvt_v2_b2_li_3x"}


@pytest.mark.parametrize("name", list_studies())
def test_a_dry_run_of_every_study(name, tmp_path):
    plan = plan_study(load_study(name, output=tmp_path / "study"))
    assert set(plan.states.values()) == {State.NEW}
    # Models are built to count their parameters: the first and the last one.
    part = replace(plan, jobs=(plan.jobs[0], plan.jobs[-1]))
    estimates = part.estimates()
    text = render(as_plan(part, estimates), 100)
    assert all(job.name in text for job in part.jobs)
    assert all(estimates[job.name].disk > 1e8 for job in part.jobs if job.command != "eval")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PAPERS)
def test_the_runs_of_a_paper_follow_published_recipes(name):
    jobs = study_jobs(load_study(name))
    assert {job.config for job in jobs if find_published(recipe_digest(job.cfg)) is None} <= UNPUBLISHED


def test_the_published_checkpoints_are_all_that_can_be_downloaded():
    jobs = study_jobs(load_study("published_checkpoints"))
    weights = {job.config: job.cfg.MODEL.WEIGHTS.removeprefix("pvt://") for job in jobs}
    assert weights == DETECTORS
    assert CATALOG.keys() >= set(weights.values())
    assert {job.cfg.MODEL.PVT.EMBED_NORM_EPS for job in jobs} == {1e-6}


def test_the_small_study_trains_all_models_alike():
    jobs = {job.name: job for job in study_jobs(load_study("small")) if job.seed == 0}
    stages = [job for job in jobs.values() if not job.grid]
    assert [stage.options.model for stage in stages] == ["pvt_tiny", "pvt_v2_b1", "resnet18"]
    different = {"model", "output", "norm"}
    first, *others = [{k: v for k, v in vars(stage.options).items() if k not in different} for stage in stages]
    assert all(other == first for other in others)
    for grid in ("blood_cells", "nuclei"):
        first, *others = [job.cfg for job in jobs.values() if job.grid == grid]
        for other in others:
            for section in ("SOLVER", "INPUT", "TEST", "DATALOADER"):
                assert other[section] == first[section]
            assert other.MODEL.ANCHOR_GENERATOR == first.MODEL.ANCHOR_GENERATOR
