"""Record the outputs of MMDetection's detectors for `test_mmdet_parity.py`.

Run it in a separate environment, since MMDetection requires older versions of other packages:

    python3.11 -m venv mmdet_env
    mmdet_env/bin/pip install mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0 torch torchvision
    mmdet_env/bin/python tests/weights/make_mmdet_reference.py tests/weights/golden/mmdet_reference.json

mmcv-lite does not include the compiled operators of mmcv. Only RoIAlign is needed before non-maximum suppression, and
mmcv can take it from torchvision through a config key. The missing module is replaced by one whose functions raise an
error when they are called.
"""

from __future__ import annotations

import json
import sys
import types
import zlib
from importlib import metadata
from pathlib import Path

import torch

SIZES = ((200, 250), (320, 416))
SAMPLES = 48
LAYERS = [2, 2, 2, 2]
TINY = {"type": "PyramidVisionTransformer", "num_layers": LAYERS, "_delete_": True}
B0 = {"type": "PyramidVisionTransformerV2", "embed_dims": 32, "num_layers": LAYERS, "_delete_": True}
# Our config → MMDetection's config, and the changes to it: backbone and number of channels of its feature maps.
CASES = {
    "retinanet_pvt_tiny": ("pvt/retinanet_pvt-t_fpn_1x_coco.py", None, None),
    "retinanet_pvt_v2_b0": ("pvt/retinanet_pvtv2-b0_fpn_1x_coco.py", None, None),
    "retinanet_R_18": ("retinanet/retinanet_r18_fpn_1x_coco.py", None, None),
    "mask_rcnn_pvt_tiny": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", TINY, [64, 128, 320, 512]),
    "mask_rcnn_pvt_v2_b0": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", B0, [32, 64, 160, 256]),
    "mask_rcnn_R_50": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", None, None),
    "atss_pvt_v2_b0": ("atss/atss_r50_fpn_1x_coco.py", B0, [32, 64, 160, 256]),
    "gfl_pvt_v2_b0": ("gfl/gfl_r50_fpn_1x_coco.py", B0, [32, 64, 160, 256]),
}
# Heads whose losses and candidates are recorded too.
ADAPTIVE = ("ATSSHead", "GFLHead")
# Candidates for non-maximum suppression need this score. All of them are recorded by number and sum.
CANDIDATE_SCORE = 0.9


class _Absent(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def fail(*args, **kwargs):
            raise RuntimeError(f"mmcv's compiled operator {name} is not available")

        return fail


def seeded(key, shape):
    """Return values that depend only on the key and shape; variances are positive and scales are close to 1."""
    if key.endswith("integral.project"):  # the values of a distribution, 0, 1, 2, …, which are not learned
        return torch.arange(shape[0]).float()
    v = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith(("running_var", ".scale")) or (v.dim() == 1 and key.endswith("weight")):
        return 1 + 0.1 * v.clamp(-5, 5)
    if v.dim() >= 2 and "pos_embed" not in key:
        return v / v[0].numel() ** 0.5
    return 0.02 * v


def image(height, width):
    """Return a random RGB image, `3×H×W`, with values from 0 to 255."""
    generator = torch.Generator().manual_seed(height * 10007 + width)
    return torch.randint(0, 256, (3, height, width), generator=generator).float()


def boxes(height, width):
    """Return eight random proposals inside an image, `8×4`, as x0, y0, x1, y1."""
    fractions = torch.rand(8, 4, generator=torch.Generator().manual_seed(height + width))
    corners = torch.stack([fractions[:, :2], fractions[:, 2:]]).sort(dim=0).values
    return torch.cat([corners[0], corners[1]], dim=1) * torch.tensor([width, height, width, height])


def truth(height, width):
    """Return boxes `8×4` and classes `8` of an image."""
    classes = torch.randint(0, 80, (8,), generator=torch.Generator().manual_seed(height))
    return boxes(height, width) + torch.tensor([0.0, 0.0, 1.0, 1.0]), classes


def sample(t):
    n, flat = t.numel(), t.flatten().double()
    values = flat[[(j * n) // SAMPLES for j in range(SAMPLES)]]
    return {
        "shape": list(t.shape),
        "mean": round(flat.mean().item(), 7),
        "std": round(flat.std().item(), 7),
        "values": [round(v, 6) for v in values.tolist()],
    }


def build(name):
    import mmdet
    from mmdet.registry import MODELS
    from mmengine.config import Config

    file, backbone, channels = CASES[name]
    cfg = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / file)
    changes = {"model.backbone.init_cfg": None}
    if backbone:
        cfg.merge_from_dict({"model.backbone": backbone})
        changes["model.neck.in_channels"] = channels
    if "roi_head" in cfg.model:
        for head in ("bbox_roi_extractor", "mask_roi_extractor"):
            changes[f"model.roi_head.{head}.roi_layer.use_torchvision"] = True
    cfg.merge_from_dict(changes)
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict({k: seeded(k, v.shape) for k, v in model.state_dict().items()})
    return model


def run(model, height, width):
    # MMDetection reads images as BGR and converts them to RGB.
    data = model.data_preprocessor({"inputs": [image(height, width).flip(0)], "data_samples": None})
    maps = model.backbone(data["inputs"])
    pyramid = model.neck(maps)
    out = {f"backbone{i}": m for i, m in enumerate(maps)} | {f"fpn{i}": p for i, p in enumerate(pyramid)}
    head = model.bbox_head if hasattr(model, "bbox_head") else model.rpn_head
    for i, level in enumerate(zip(*head(pyramid), strict=True)):
        out |= {f"{name}{i}": values for name, values in zip(("scores", "deltas", "centerness"), level, strict=False)}
    if hasattr(model, "roi_head"):
        rois = torch.cat([torch.zeros(8, 1), boxes(height, width)], dim=1)
        roi_head = model.roi_head
        box_features = roi_head.bbox_roi_extractor(pyramid[:4], rois)
        out["box_scores"], out["box_deltas"] = roi_head.bbox_head(box_features)
        out["masks"] = roi_head.mask_head(roi_head.mask_roi_extractor(pyramid[:4], rois))
    return {k: sample(v) for k, v in out.items()}


def losses(model):
    """Return the losses of a batch with an image of each size."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for size in SIZES:
        sample = DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
        true_boxes, labels = truth(*size)
        sample.gt_instances = InstanceData(bboxes=true_boxes, labels=labels)
        samples.append(sample)
    inputs = [image(*size).flip(0) for size in SIZES]
    data = model.data_preprocessor({"inputs": inputs, "data_samples": samples}, training=True)
    found = model.loss(data["inputs"], data["data_samples"])
    return {name: round(sum(level.item() for level in levels), 7) for name, levels in found.items()}


def candidates(model, height, width):
    """Return the number of candidates, the sums of their scores and boxes, and those with the highest scores."""
    data = model.data_preprocessor({"inputs": [image(height, width).flip(0)], "data_samples": None})
    cfg = model.test_cfg.copy()
    cfg.update(score_thr=CANDIDATE_SCORE, nms_pre=1_000_000)
    meta = {"img_shape": (height, width), "scale_factor": (1.0, 1.0)}
    outputs = model.bbox_head(model.neck(model.backbone(data["inputs"])))
    (found,) = model.bbox_head.predict_by_feat(*outputs, batch_img_metas=[meta], cfg=cfg, with_nms=False)
    best = found.scores.argsort(descending=True)[:16]
    return {
        "number": len(found.scores),
        "score_sum": round(found.scores.double().sum().item(), 4),
        "box_sum": [round(total, 2) for total in found.bboxes.double().sum(dim=0).tolist()],
        "scores": [round(score, 6) for score in found.scores[best].tolist()],
        "labels": found.labels[best].tolist(),
        "boxes": [[round(x, 3) for x in box] for box in found.bboxes[best].tolist()],
    }


def anchors(model):
    """Return the anchors at the first location of every level, in MMDetection's order."""
    head = model.bbox_head if hasattr(model, "bbox_head") else model.rpn_head
    return [[[round(x, 4) for x in a] for a in level.tolist()] for level in head.prior_generator.base_anchors]


@torch.no_grad()
def main(path):
    sys.modules["mmcv._ext"] = _Absent("mmcv._ext")
    from mmdet.utils import register_all_modules

    register_all_modules()

    record = {"versions": {p: metadata.version(p) for p in ("mmdet", "mmengine", "mmcv-lite", "torch", "torchvision")}}
    record["cases"] = {}
    for name in CASES:
        model = build(name)
        record["cases"][name] = {
            "keys": {k: list(v.shape) for k, v in model.state_dict().items()},
            "anchors": anchors(model),
            "outputs": {f"{h}x{w}": run(model, h, w) for h, w in SIZES},
        }
        if type(getattr(model, "bbox_head", None)).__name__ in ADAPTIVE:
            record["cases"][name]["losses"] = losses(model)
            record["cases"][name]["candidates"] = {f"{h}x{w}": candidates(model, h, w) for h, w in SIZES}
        print(name, len(record["cases"][name]["keys"]), "tensors")
    Path(path).write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
