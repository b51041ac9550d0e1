"""Profiled steps run all types of models on fixed images, with gradients set to None before each step."""

from __future__ import annotations

import pytest
import torch

from pvt_det.profiling import Case, build_model, build_step

CPU = torch.device("cpu")
CONFIGS = ("retinanet_pvt_tiny", "mask_rcnn_pvt_tiny", "semantic_fpn_pvt_tiny", "panoptic_fpn_pvt_small")


@pytest.mark.parametrize("name", CONFIGS)
def test_all_parameters_get_gradients_from_random_images(repo_root, name):
    case = Case(str(repo_root / f"configs/{name}.yaml"), "detector", "training", "fp32", 1, 64, 64)
    module, forward = build_model(case, CPU)
    build_step((module, forward), case, CPU)()
    missing = [key for key, value in module.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []


def test_gradients_do_not_accumulate_over_steps():
    case = Case("pvt_v2_b0", "pyramid", "training", "fp32", 1, 32, 32)
    module, forward = build_model(case, CPU)
    step = build_step((module, forward), case, CPU)
    step()
    first = module.patch_embed1.proj.weight.grad.clone()
    step()
    torch.testing.assert_close(module.patch_embed1.proj.weight.grad, first)
    assert first.any()


def test_run_is_built_with_its_weights(untrained_run, saved_weights):
    case = Case(str(untrained_run), "detector", "inference", "fp32", 1, 64, 64)
    module, _ = build_model(case, CPU)
    saved = saved_weights(untrained_run / "model_final.pth")
    assert torch.equal(module.state_dict()["head.cls_score.weight"], saved["head.cls_score.weight"])
    assert not module.training


def test_checkpointed_trunk():
    case = Case("pvt_v2_b0", "classifier", "training", "fp32", 1, 32, 32, checkpointed=True)
    module, forward = build_model(case, CPU)
    assert module.checkpoint_stages == {1, 2, 3, 4}
    assert forward(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
