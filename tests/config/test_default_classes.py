"""Detectron2's DefaultTrainer and DefaultPredictor refuse configs that they would misread, and run all others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.modeling import build_model
from PIL import Image

from pvt_det import Predictor, add_pvt_config
from pvt_det.config import load_config
from pvt_det.errors import ConfigError

# What Detectron2 does, for a config of retinanet_pvt_tiny.
STOCK = ["SOLVER.OPTIMIZER", "sgd", "INPUT.RESIZE_BACKEND", "pil"]


def config(repo_root, *overrides, name="retinanet_pvt_tiny"):
    return load_config(repo_root / f"configs/{name}.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *overrides])


def refusal(function, *arguments):
    with pytest.raises(ConfigError) as error:
        function(*arguments)
    return str(error.value)


def test_trainer_names_all_keys_and_shows_what_to_use(repo_root):
    message = refusal(DefaultTrainer, config(repo_root))
    assert message.startswith(
        "Detectron2's DefaultTrainer would ignore SOLVER.OPTIMIZER adamw, INPUT.RESIZE_BACKEND cv2. Train with"
    )
    assert "    pvt_det.train(cfg)\n" in message
    assert "    class Trainer(PVTParts, DefaultTrainer):\n" in message
    assert message.endswith("set SOLVER.OPTIMIZER sgd INPUT.RESIZE_BACKEND pil.")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("SOLVER.EMA.ENABLED True", "SOLVER.EMA.ENABLED True"),
        ("SOLVER.ACCUMULATE_STEPS 2", "SOLVER.ACCUMULATE_STEPS 2"),
        ("SOLVER.EPOCHS 3", "SOLVER.EPOCHS 3"),
        ("SOLVER.AMP.ENABLED True", "SOLVER.AMP.PRECISION bf16"),
        ("SOLVER.LR_SCHEDULER_NAME WarmupPolyLR", "SOLVER.LR_SCHEDULER_NAME WarmupPolyLR"),
        (
            "SOLVER.CLIP_GRADIENTS.ENABLED True SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model",
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model",
        ),
        ("INPUT.MOSAIC.PROBABILITY 0.5", "INPUT.MOSAIC.PROBABILITY 0.5"),
        ("INPUT.LARGE_SCALE_JITTER.ENABLED True", "INPUT.LARGE_SCALE_JITTER.ENABLED True"),
        ("DATASETS.TRAIN_JSON mine.json", "DATASETS.TRAIN_JSON mine.json, because no data set of DATASETS.TRAIN"),
    ],
)
def test_trainer_refuses(repo_root, words, named):
    message = refusal(DefaultTrainer, config(repo_root, *STOCK, *words.split()))
    assert f"would ignore {named}" in message
    # Mixing in other parts does not change the loop.
    assert ("PVTParts" in message) == named.startswith(("SOLVER.LR", "SOLVER.CLIP", "INPUT"))


def test_segmentors_are_cropped_before_they_are_resized(repo_root):
    message = refusal(DefaultTrainer, config(repo_root, name="semantic_fpn_pvt_tiny"))
    assert "INPUT.CROP.ENABLED True" in message


def test_overridden_methods_are_not_checked(repo_root):
    class Trainer(DefaultTrainer):
        @classmethod
        def build_optimizer(cls, cfg, model):
            raise AssertionError

    assert "would ignore INPUT.RESIZE_BACKEND cv2." in refusal(Trainer, config(repo_root))


def test_evaluation(repo_root):
    cfg = config(repo_root, "DATASETS.TEST", "[]")
    assert "DefaultTrainer.test would ignore INPUT.RESIZE_BACKEND cv2" in refusal(DefaultTrainer.test, cfg, None)
    cfg.INPUT.RESIZE_BACKEND = "pil"
    assert DefaultTrainer.test(cfg, None) == {}


def test_other_models_are_not_checked():
    cfg = get_cfg()
    add_pvt_config(cfg)
    cfg.INPUT.RESIZE_BACKEND = "cv2"
    cfg.DATASETS.TEST = ()
    assert DefaultTrainer.test(cfg, None) == {}


@pytest.mark.parametrize("key", ["TEST.PRECISION bf16", "TEST.AUG.ENABLED True", "INPUT.RESIZE_BACKEND cv2"])
def test_predictor_refuses(repo_root, key):
    message = refusal(DefaultPredictor, config(repo_root, *STOCK, *key.split()))
    assert f"Detectron2's DefaultPredictor would ignore {key}. Use this package's predictor" in message
    assert "from pvt_det import Predictor" in message


@pytest.mark.parametrize("side", [64, 96])
def test_predictor_finds_the_same_objects(untrained_run, shapes, side):
    words = ["MODEL.DEVICE", "cpu", "INPUT.RESIZE_BACKEND", "pil", "INPUT.MIN_SIZE_TEST", str(side)]
    cfg = get_cfg()
    add_pvt_config(cfg)
    cfg.merge_from_file(untrained_run / "config.yaml")
    cfg.merge_from_list([*words, "MODEL.WEIGHTS", str(untrained_run / "model_final.pth")])
    image = np.asarray(Image.open(next((shapes / "val").iterdir())).convert("RGB"))
    found = DefaultPredictor(cfg)(image[:, :, ::-1])["instances"]
    wanted = Predictor(untrained_run, device="cpu", overrides=words, score_threshold=0.05)(image)
    assert len(found) == len(wanted) > 0
    # Resized pixels differ by one level of 255.
    tolerance = {"rtol": 0, "atol": 0 if side == 64 else 0.05}
    torch.testing.assert_close(found.scores, wanted.scores, **tolerance)
    if side == 64:
        torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor, **tolerance)
        assert found.pred_classes.tolist() == wanted.pred_classes.tolist()


def test_configs_are_merged_as_by_load_config(repo_root):
    cfg = get_cfg()
    add_pvt_config(cfg)
    cfg.merge_from_file(repo_root / "configs/mask_rcnn_pvt_v2_b2_3x.yaml")
    loaded = load_config(repo_root / "configs/mask_rcnn_pvt_v2_b2_3x.yaml")
    cfg.MODEL.DEVICE = loaded.MODEL.DEVICE
    assert cfg.dump() == loaded.dump()


def test_checkpointer_loads_a_run(untrained_run, saved_weights):
    cfg = load_config(untrained_run / "config.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(untrained_run / "model_final.pth"))
    state = model.state_dict()
    for name, tensor in saved_weights(untrained_run / "model_final.pth").items():
        assert torch.equal(state[name], tensor), name
