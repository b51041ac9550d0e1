"""All tensors of a training step are on the model's device and have the intended dtype.

The tests need no GPU, because they use PyTorch's fake tensors, which have a device but no values, and which raise an
error if devices are mixed. They also count copies from the CPU to the GPU, because these synchronize.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pvt_det.modeling  # noqa: F401  (registers the builders)
from pvt_det.config import load_config
from pvt_det.modeling.focal import dense_focal_loss

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"), reason="PyTorch 2.9 fails on fake CUDA tensors without a GPU"
)
SIZE = (96, 128)


@contextmanager
def autocast_on_fake_cuda(dtype: torch.dtype) -> Iterator[None]:
    # `torch.autocast` disables itself without a GPU.
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    torch.set_autocast_dtype("cuda", dtype if dtype != torch.float32 else torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


class Copies(TorchDispatchMode):
    """Records the operations that copy from the CPU to a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs, outputs = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        if "cpu" in inputs and "cuda" in outputs:
            self.found.append(str(func))
        return result


def on_cuda(model: torch.nn.Module) -> torch.nn.Module:
    """Move the model to fake CUDA tensors. Call it within FakeTensorMode."""
    return model._apply(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda"))


def make_targets(number: int) -> Instances:
    classes = torch.zeros(number, dtype=torch.int64, device="cuda")
    return Instances(SIZE, gt_boxes=Boxes(torch.rand(number, 4, device="cuda")), gt_classes=classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["retinanet_pvt_tiny", "retinanet_pvt_v2_b2_li"])
def test_dense_detector_stays_on_the_gpu(repo_root, name, dtype):
    model = build_model(load_config(repo_root / "configs" / f"{name}.yaml", ["MODEL.DEVICE", "cpu"])).train()
    with FakeTensorMode(), autocast_on_fake_cuda(dtype), Copies() as copies:
        on_cuda(model)
        maps = model.backbone(torch.zeros(2, 3, *SIZE, device="cuda"))
        features = [maps[level] for level in model.head_in_features]
        logits, deltas = model._transpose_dense_predictions(model.head(features), [model.num_classes, 4])
        anchors = model.build_anchors(features)
        labels, boxes = (torch.stack(per_image) for per_image in model.label_anchors(anchors, [make_targets(3)] * 2))
        loss = dense_focal_loss(logits, labels, 0.25, 2.0)
    on_gpu = [*features, *logits, *deltas, *(level.tensor for level in anchors), labels, boxes, loss]
    assert {str(tensor.device) for tensor in on_gpu} == {"cuda:0"}
    assert {tensor.dtype for tensor in (*logits, *deltas)} == {dtype}
    assert loss.dtype == torch.float32
    assert copies.found == []
    # The outputs of the head are views, without a copy.
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in (*logits, *deltas))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["atss_pvt_v2_b2_3x", "gfl_pvt_v2_b2_3x"])
def test_adaptive_detector_stays_on_the_gpu(repo_root, name, dtype):
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.PVT.VARIANT", "pvt_v2_b0"]
    model = build_model(load_config(repo_root / "configs" / f"{name}.yaml", overrides)).train()
    with FakeTensorMode(), autocast_on_fake_cuda(dtype), Copies() as copies:
        on_cuda(model)
        images = ImageList(torch.zeros(2, 3, *SIZE, device="cuda"), [SIZE, (64, 64)])
        maps = model.backbone(images.tensor)
        features = [maps[level] for level in model.head_in_features]
        outputs = model.head(features)
        anchors = model.build_anchors(features)
        labels, boxes = model.label_anchors(anchors, [make_targets(3), make_targets(0)], images)
        deltas = outputs[1][0].flatten(2)[0].T
        decoded = model.box2box_transform.apply_deltas(deltas, anchors[0].tensor)
    on_gpu = [*features, *(level for levels in outputs for level in levels), labels, boxes, decoded]
    assert {str(tensor.device) for tensor in on_gpu} == {"cuda:0"}
    assert {level.dtype for levels in outputs for level in levels} == {dtype}
    assert decoded.dtype == torch.float32
    assert copies.found == []


@pytest.mark.parametrize("loss_average", ["all", "valid"])
def test_segmentor_stays_on_the_gpu(repo_root, loss_average):
    cfg = load_config(repo_root / "configs/semantic_fpn_pvt_tiny.yaml", ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.SEM_SEG_HEAD.LOSS_AVERAGE = loss_average
    model = build_model(cfg).train()
    with FakeTensorMode(), autocast_on_fake_cuda(torch.bfloat16), Copies() as copies:
        on_cuda(model)
        maps = model.backbone(torch.zeros(2, 3, *SIZE, device="cuda"))
        labels = torch.zeros(2, *SIZE, dtype=torch.int64, device="cuda")
        scores, losses = model.sem_seg_head(maps, labels)
    assert (scores, str(losses["loss_sem_seg"].device), losses["loss_sem_seg"].dtype) == (None, "cuda:0", torch.float32)
    assert copies.found == []
