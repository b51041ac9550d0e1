"""Record the outputs of MMDetection's detectors for `test_mmdet_parity.py`.

Run it in a separate environment, since MMDetection requires older versions of other packages:

    python3.11 -m venv mmdet_env
    mmdet_env/bin/pip install mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0 torch torchvision
    mmdet_env/bin/python tests/weights/make_mmdet_reference.py tests/weights/golden/mmdet_reference.json

mmcv-lite does not include the compiled operators of mmcv. Only RoIAlign is needed before non-maximum suppression, and
is taken from torchvision: through a config key, and for masks by replacing it. The missing module is replaced by one
whose functions raise an error when they are called.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import types
import zlib
from importlib import metadata
from pathlib import Path

import torch
import torchvision

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
    "cascade_mask_rcnn_pvt_v2_b0": (
        "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
        B0,
        [32, 64, 160, 256],
    ),
    "atss_pvt_v2_b0": ("atss/atss_r50_fpn_1x_coco.py", B0, [32, 64, 160, 256]),
    "gfl_pvt_v2_b0": ("gfl/gfl_r50_fpn_1x_coco.py", B0, [32, 64, 160, 256]),
}
# The published box heads of PVT v2's Cascade Mask R-CNN, with fewer channels.
CASCADE_BOX_HEAD = {
    "type": "ConvFCBBoxHead",
    "num_shared_convs": 4,
    "num_shared_fcs": 1,
    "conv_out_channels": 64,
    "fc_out_channels": 128,
    "reg_class_agnostic": False,
    "reg_decoded_bbox": True,
    "norm_cfg": {"type": "SyncBN", "requires_grad": True},
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 10.0},
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


def seeded_weights(name, shapes):
    """Return the weights of a recorded detector by name. A cascade gets scores that differ between its stages."""
    weights = {key: seeded(key, shape) for key, shape in shapes.items()}
    if name.startswith("cascade"):
        for key in weights:
            if re.search(r"_head\.\d\.(fc_cls|conv_logits)\.weight", key):
                weights[key] *= 30
    return weights


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


def noisy_boxes(height, width):
    """Return proposals `40×4` of an image: four around each true box, from close to far, and eight random ones."""
    true_boxes, _ = truth(height, width)
    sides = (true_boxes[:, 2:] - true_boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(height - width))
    scales = torch.tensor([0.02, 0.05, 0.1, 0.2])[:, None, None]
    limit = torch.tensor([width, height, width, height])
    moved = (true_boxes + noise * scales * sides).flatten(0, 1).clamp(min=0).minimum(limit)
    return torch.cat([moved, boxes(width, height).minimum(limit)])


def ellipses(height, width):
    """Return masks `8×H×W` (bool): the ellipse inside each true box."""
    x0, y0, x1, y1 = truth(height, width)[0][:, :, None, None].unbind(1)
    x, y = torch.arange(width)[None, None] + 0.5, torch.arange(height)[None, :, None] + 0.5
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 < 1


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
    if cfg.model.type == "CascadeRCNN":
        changes["model.roi_head.mask_head.conv_out_channels"] = 64
        # `update` would merge the losses.
        for head in cfg.model.roi_head.bbox_head:
            for key, value in CASCADE_BOX_HEAD.items():
                head[key] = value
    cfg.merge_from_dict(changes)
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(seeded_weights(name, {k: v.shape for k, v in model.state_dict().items()}))
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
    if type(model).__name__ == "CascadeRCNN":
        out |= run_cascade(model.roi_head, pyramid, height, width)
    elif hasattr(model, "roi_head"):
        rois = torch.cat([torch.zeros(8, 1), boxes(height, width)], dim=1)
        roi_head = model.roi_head
        box_features = roi_head.bbox_roi_extractor(pyramid[:4], rois)
        out["box_scores"], out["box_deltas"] = roi_head.bbox_head(box_features)
        out["masks"] = roi_head.mask_head(roi_head.mask_roi_extractor(pyramid[:4], rois))
    return {k: sample(v) for k, v in out.items()}


def run_cascade(roi_head, pyramid, height, width):
    """Return boxes and scores before non-maximum suppression, and the masks of the true boxes and classes."""
    from mmengine.structures import InstanceData

    meta = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    (found,) = roi_head.predict_bbox(pyramid, [meta], [InstanceData(bboxes=boxes(height, width))], None)
    true_boxes, labels = truth(height, width)
    # The masks that the last head would paste into the image.
    roi_head.mask_head[-1].predict_by_feat = lambda mask_preds, **_: mask_preds
    (masks,) = roi_head.predict_mask(pyramid, [meta], [InstanceData(bboxes=true_boxes, labels=labels)])
    return {"box_scores": found.scores, "boxes": found.bboxes, "masks": masks[torch.arange(8), labels]}


def cascade_losses(model):
    """Return the losses of the ROI heads for a batch with an image of each size, whose proposals are all sampled."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    samples, proposals = [], []
    for size in SIZES:
        true_boxes, labels = truth(*size)
        masks = BitmapMasks(ellipses(*size).numpy().astype("uint8"), *size)
        samples.append(DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}))
        samples[-1].gt_instances = InstanceData(bboxes=true_boxes, labels=labels, masks=masks)
        proposals.append(InstanceData(bboxes=noisy_boxes(*size)))
    data = model.data_preprocessor({"inputs": [image(*size).flip(0) for size in SIZES], "data_samples": None})
    pyramid = model.neck(model.backbone(data["inputs"]))
    model.roi_head.train()
    found = model.roi_head.loss(pyramid, proposals, samples)
    return {name: round(value.item(), 7) for name, value in found.items() if "loss" in name}


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
    structures = importlib.import_module("mmdet.structures.mask.structures")
    structures.roi_align = lambda masks, rois, size, scale, ratio, mode, aligned: torchvision.ops.roi_align(
        masks, rois, size, scale, ratio, aligned
    )

    record = {"versions": {p: metadata.version(p) for p in ("mmdet", "mmengine", "mmcv-lite", "torch", "torchvision")}}
    record["cases"] = {}
    for name in CASES:
        model = build(name)
        record["cases"][name] = {
            "keys": {k: list(v.shape) for k, v in model.state_dict().items()},
            "anchors": anchors(model),
            "outputs": {f"{h}x{w}": run(model, h, w) for h, w in SIZES},
        }
        if type(model).__name__ == "CascadeRCNN":
            record["cases"][name]["losses"] = cascade_losses(model)
        if type(getattr(model, "bbox_head", None)).__name__ in ADAPTIVE:
            record["cases"][name]["losses"] = losses(model)
            record["cases"][name]["candidates"] = {f"{h}x{w}": candidates(model, h, w) for h, w in SIZES}
        print(name, len(record["cases"][name]["keys"]), "tensors")
    Path(path).write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
