"""Fixtures of small models and their exported files. Tracing them takes seconds, so all tests share one of each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from tests.tiny_runs import TINY

# The fewest operators to trace with all kinds of layers.
VARIANT = "pvt_v2_smallest"
CLASSES = ["circle", "square", "triangle", "star"]
_COMMON = {"MODEL.PVT.VARIANT": VARIANT, "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.PVT.DROP_PATH_RATE": 0}
# Two levels and shallow heads still repeat layers and levels.
_MASK_RCNN = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3"],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 60,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3"],
    "MODEL.ROI_HEADS.NUM_CLASSES": len(CLASSES),
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "DATASETS.CLASS_NAMES": CLASSES,
    "INPUT.FORMAT": "BGR",
}
_RETINANET = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [64]],
    "MODEL.RETINANET.IN_FEATURES": ["p3", "p7"],
    "MODEL.RETINANET.NUM_CLASSES": len(CLASSES),
    "DATASETS.CLASS_NAMES": CLASSES,
}
_SEMANTIC = {
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3"],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
}
_PANOPTIC = {key: value for key, value in _MASK_RCNN.items() if key != "INPUT.FORMAT"} | {
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3"],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 16,
    "TEST.DETECTIONS_PER_IMAGE": 20,
}


@contextmanager
def _variant() -> Iterator[None]:
    from pvt_det.models.variants import VARIANTS, Variant

    is_outermost = VARIANT not in VARIANTS
    VARIANTS[VARIANT] = Variant(VARIANT, "v2", depths=(1, 1, 1, 1), embed_dims=(8, 16, 40, 64))
    try:
        yield
    finally:
        if is_outermost:  # other tests count the variants
            del VARIANTS[VARIANT]


@pytest.fixture(scope="module")
def smallest_variant() -> Iterator[None]:
    """Make the variant of the small models known, which their config names. Modules that open them need it."""
    with _variant():
        yield


@pytest.fixture(scope="session")
def shared_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Path]:
    """Make a folder once for all processes that run tests."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent

    def make(name: str, build: Callable[[Path], None]) -> Path:
        folder = root / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = root / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                with _variant():
                    build(unfinished)
                unfinished.rename(folder)
        return folder

    return make


def _write_run(folder: Path, recipe: Path, settings: dict[str, object]) -> None:
    """Write a run folder with random weights that detect something of every class."""
    import torch
    from detectron2.modeling import build_model

    from pvt_det.config import load_config

    settings = TINY | _COMMON | settings
    cfg = load_config(recipe, [str(word) for pair in settings.items() for word in pair])
    torch.manual_seed(0)
    model = build_model(cfg)
    # Detectron2's initialization of the heads, with a standard deviation of 0.01, gives almost equal scores.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone") and parameter.dim() > 1:
                last = any(part in name for part in ("cls_score", "bbox_pred", "objectness", "anchor_deltas"))
                parameter.normal_(0, 0.05 if last else (2 / parameter[0].numel()) ** 0.5)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    cfg.OUTPUT_DIR = "."
    (folder / "config.yaml").write_text(cfg.dump())


@pytest.fixture(scope="session")
def mask_rcnn_run(repo_root: Path, shared_once: Callable[..., Path]) -> Path:
    """Run folder of a Mask R-CNN for BGR images."""
    recipe = repo_root / "configs/mask_rcnn_pvt_tiny.yaml"
    return shared_once("mask_rcnn_run", lambda folder: _write_run(folder, recipe, _MASK_RCNN))


@pytest.fixture(scope="session")
def retinanet_small_run(repo_root: Path, shared_once: Callable[..., Path]) -> Path:
    """Run folder of a RetinaNet."""
    recipe = repo_root / "configs/retinanet_pvt_tiny.yaml"
    return shared_once("retinanet_small_run", lambda folder: _write_run(folder, recipe, _RETINANET))


@pytest.fixture(scope="session")
def semantic_run(repo_root: Path, shared_once: Callable[..., Path]) -> Path:
    """Run folder of a Semantic FPN."""
    recipe = repo_root / "configs/semantic_fpn_pvt_tiny.yaml"
    return shared_once("semantic_run", lambda folder: _write_run(folder, recipe, _SEMANTIC))


@pytest.fixture(scope="session")
def panoptic_small_run(repo_root: Path, shared_once: Callable[..., Path]) -> Path:
    """Run folder of a Panoptic FPN."""
    recipe = repo_root / "configs/panoptic_fpn_pvt_small.yaml"
    return shared_once("panoptic_small_run", lambda folder: _write_run(folder, recipe, _PANOPTIC))


@pytest.fixture(scope="session")
def exported(mask_rcnn_run: Path, shapes: Path, shared_once: Callable[..., Path]) -> Path:
    """Folder with `mine.onnx` and `mine_openvino`, which are exported from the Mask R-CNN."""

    def build(folder: Path) -> None:
        import pvt_det
        from pvt_det.deployment.files import convert_to_openvino
        from pvt_det.runtimes.backends import BACKENDS

        file = folder / "mine.onnx"
        pvt_det.export(mask_rcnn_run, file, images=[shapes / "val"])
        # What `export --format openvino` does with the ONNX file that it writes.
        convert_to_openvino(file, folder / "mine_openvino", BACKENDS["onnx"].read_metadata(file))

    return shared_once("exported", build)


@pytest.fixture(scope="session")
def exported_program(semantic_run: Path, shapes: Path, shared_once: Callable[..., Path]) -> Path:
    """The file `mine.pt2`, which is exported from the Semantic FPN."""
    import pvt_det

    folder = shared_once(
        "exported_program", lambda folder: pvt_det.export(semantic_run, folder / "mine.pt2", images=[shapes / "val"])
    )
    return folder / "mine.pt2"
