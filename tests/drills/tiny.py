"""A tiny detector on generated shapes, with half a second per iteration on one CPU core."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.scripts import dataset_script

if TYPE_CHECKING:
    from detectron2.config import CfgNode

write_shapes = dataset_script("make_shapes").write_shapes

SIDE = 64
_TRAIN, _VAL = 8, 3
SETTINGS: dict[str, Any] = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.PVT.VARIANT": "pvt_v2_b0",
    "MODEL.FPN.OUT_CHANNELS": 32,
    **{f"MODEL.{head}.NUM_CONVS": 1 for head in ("RETINANET", "ATSS", "GFL")},
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "INPUT.MIN_SIZE_TRAIN": [SIDE],
    "INPUT.MIN_SIZE_TEST": SIDE,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": [],
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 1_000_000,
    "TEST.EVAL_PERIOD": 0,
}


def tiny_words(folder: Path, output: Path, settings: dict[str, Any] | None = None, *, val: bool = False) -> list[str]:
    """Return the overrides `KEY VALUE …` that make any detector of `configs/` tiny.

    Args:
        folder: Folder of the data set, which is generated if it does not exist.
        output: Run folder (`OUTPUT_DIR`).
        settings: Additional keys and values, which replace the defaults.
        val: Also set the data set to evaluate on.
    """
    merged = SETTINGS | shapes_keys(folder, "TRAIN") | {"OUTPUT_DIR": output}
    if val:
        merged |= shapes_keys(folder, "VAL")
    return [str(word) for pair in (merged | (settings or {})).items() for word in pair]


def shapes_keys(folder: Path, part: str) -> dict[str, Path]:
    """Return the `DATASETS` keys of the generated shapes.

    Args:
        folder: Folder of the data set, which is generated if it does not exist.
        part: "TRAIN" or "VAL".
    """
    data = folder / "shapes"
    if not data.exists():
        write_shapes(data, train=_TRAIN, val=_VAL, image_size=SIDE)
    name = part.lower()
    return {
        f"DATASETS.{part}_JSON": data / f"annotations/instances_{name}.json",
        f"DATASETS.{part}_IMAGES": data / name,
    }


def tiny_config(config_file: str, folder: Path, output: Path, settings: dict[str, Any] | None = None) -> CfgNode:
    """Create the run folder of a tiny detector and return its config.

    Args:
        config_file: Config of the detector.
        folder: Folder of the data set, which is generated if it does not exist.
        output: Run folder (`OUTPUT_DIR`).
        settings: Additional keys and values, which replace the defaults.
    """
    from pvt_det.config import load_config

    output.mkdir(parents=True, exist_ok=True)
    return load_config(config_file, tiny_words(folder, output, settings))


def write_untrained_run(folder: Path, config_file: str | Path, settings: dict[str, Any] | None = None) -> Path:
    """Write the run folder of a tiny RetinaNet with random weights that predict low and high scores.

    Args:
        folder: An existing folder.
        config_file: Config of a RetinaNet.
        settings: Additional keys and values, which replace the defaults.

    Returns:
        The folder.
    """
    import torch
    from detectron2.modeling import build_model

    from pvt_det.config import load_config

    names = ["circle", "square", "triangle", "star"]
    of_classes = {"DATASETS.CLASS_NAMES": names, "MODEL.RETINANET.NUM_CLASSES": len(names), "OUTPUT_DIR": folder}
    merged = SETTINGS | of_classes | (settings or {})
    cfg = load_config(config_file, [str(word) for pair in merged.items() for word in pair], training=False)
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.head.cls_score.weight, std=1.0)
    torch.nn.init.normal_(model.head.bbox_pred.weight, std=0.1)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder
