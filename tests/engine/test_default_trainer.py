"""Detectron2's DefaultTrainer with this package's parts trains what the config says."""

from __future__ import annotations

import torch
from detectron2.engine import DefaultTrainer
from torch import nn

from pvt_det.data.sets import register_datasets
from pvt_det.engine.default_trainer import PVTParts
from pvt_det.solver.build import total_gradient_norm


class Trainer(PVTParts, DefaultTrainer):
    pass


def test_trains_and_evaluates(tiny_cfg, tmp_path):
    changes = {"SOLVER__MAX_ITER": 2, "SOLVER__STEPS": [1], "SOLVER__WARMUP_ITERS": 0}
    cfg = tiny_cfg(tmp_path, val=True, MODEL__RETINANET__SCORE_THRESH_TEST=0.0, **changes)
    register_datasets(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    trainer.train()
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert trainer.optimizer.param_groups[0]["lr"] < cfg.SOLVER.BASE_LR
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.model.named_parameters())
    assert trainer._last_eval_results["bbox"].keys() >= {"AP", "AP50"}
    assert (tmp_path / "model_final.pth").is_file()
    # Our loader reads images with OpenCV's resize, Detectron2's does not know it.
    assert trainer.data_loader.dataset.mapper.augmentations.augs[-1].backend == "cv2"


def test_clips_the_gradients_of_all_parameters_together(tiny_cfg, tmp_path):
    clip = {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 0.5}
    cfg = tiny_cfg(tmp_path, **{f"SOLVER__CLIP_GRADIENTS__{key}": value for key, value in clip.items()})
    model = nn.Linear(3, 2)
    optimizer = Trainer.build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    optimizer.step()
    norm = total_gradient_norm(list(model.parameters()), 2.0)
    torch.testing.assert_close(norm, torch.tensor(0.5), rtol=0, atol=1e-4)


def test_gradients_are_unscaled_before_they_are_clipped(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, SOLVER__AMP__ENABLED=True, SOLVER__AMP__PRECISION="fp16")
    optimizer = Trainer.build_optimizer(cfg, nn.Linear(3, 2))
    # GradScaler leaves the gradients of fused optimizers scaled.
    assert not optimizer.defaults["fused"]
