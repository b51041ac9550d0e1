"""Record the outputs and losses of MMDetection's DETR and Sparse R-CNN for `test_mmdet_queries.py`.

Run it in the environment that `make_mmdet_reference.py` describes:

    mmdet_env/bin/python tests/weights/make_mmdet_queries_reference.py tests/weights/golden/mmdet_queries.json
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import torch

if __name__ == "__main__":
    from make_mmdet_reference import _Absent, image, sample, seeded
else:
    from tests.weights.make_mmdet_reference import image, sample, seeded

SIZES = ((96, 128), (130, 100))
LAYERS, QUERIES, DIM, HIDDEN, DYNAMIC = 2, 20, 64, 128, 16
TINY = {"type": "PyramidVisionTransformer", "num_layers": [2, 2, 2, 2], "_delete_": True}
B0 = {"type": "PyramidVisionTransformerV2", "embed_dims": 32, "num_layers": [2, 2, 2, 2], "_delete_": True}
# Name → MMDetection's config, and the changes to it. The published models have PVT-Small and PVT v2 b2.
CASES = {
    "detr": (
        "detr/detr_r50_8xb2-150e_coco.py",
        {
            "model.backbone": TINY | {"out_indices": (3,)},
            "model.neck.in_channels": [512],
            "model.encoder.num_layers": LAYERS,
            "model.decoder.num_layers": LAYERS,
            "model.num_queries": QUERIES,
            "model.neck.out_channels": DIM,
            "model.positional_encoding.num_feats": DIM // 2,
            "model.bbox_head.embed_dims": DIM,
            "model.encoder.layer_cfg.self_attn_cfg.embed_dims": DIM,
            "model.encoder.layer_cfg.ffn_cfg": {"embed_dims": DIM, "feedforward_channels": HIDDEN},
            "model.decoder.layer_cfg.self_attn_cfg.embed_dims": DIM,
            "model.decoder.layer_cfg.cross_attn_cfg.embed_dims": DIM,
            "model.decoder.layer_cfg.ffn_cfg": {"embed_dims": DIM, "feedforward_channels": HIDDEN},
            "model.data_preprocessor.pad_size_divisor": 32,
        },
    ),
    "sparse_rcnn": (
        "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
        {
            "model.backbone": B0,
            "model.neck.in_channels": [32, 64, 160, 256],
            "model.neck.out_channels": DIM,
            "model.rpn_head": {"num_proposals": QUERIES, "proposal_feature_channel": DIM},
            "model.roi_head.proposal_feature_channel": DIM,
            "model.roi_head.bbox_roi_extractor.out_channels": DIM,
            "model.roi_head.num_stages": LAYERS,
            "model.roi_head.stage_loss_weights": [1] * LAYERS,
            "model.roi_head.bbox_roi_extractor.roi_layer.use_torchvision": True,
        },
    ),
}


def weights(key, shape):
    """Return seeded values, with queries, proposals and class biases as at the start of training."""
    values = seeded(key, shape)
    if key.endswith("init_proposal_bboxes.weight"):
        return torch.cat([0.5 + 0.1 * values[:, :2].clamp(-2, 2), (values[:, 2:] - 1).sigmoid()], dim=1)
    if key.endswith("fc_cls.bias"):
        return values - 4.6  # scores of 0.01
    if key.endswith(("query_embedding.weight", "init_proposal_features.weight")):
        return values * shape[1] ** 0.5
    return values


def objects():
    """Return the boxes (x0, y0, x1, y1 in pixels) and classes of the objects in the images of `SIZES`."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for height, width in SIZES:
        corners = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
        found.append((corners.flatten(1), torch.randint(0, 80, (3,), generator=generator)))
    return found


def build(name):
    import mmdet
    from mmdet.registry import MODELS
    from mmengine.config import Config

    file, changes = CASES[name]
    cfg = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / file)
    cfg.merge_from_dict(changes)
    cfg.model.backbone.init_cfg = None
    if name == "sparse_rcnn":
        cfg.model.roi_head.bbox_head = cfg.model.roi_head.bbox_head[:LAYERS]
        for head in cfg.model.roi_head.bbox_head:
            head.update(in_channels=DIM, feedforward_channels=HIDDEN)
            head.dynamic_conv_cfg.update(in_channels=DIM, feat_channels=DYNAMIC, out_channels=DIM)
        cfg.model.train_cfg.rcnn = cfg.model.train_cfg.rcnn[:LAYERS]
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict({k: weights(k, v.shape) for k, v in model.state_dict().items()})
    return model


def batch(model, *numbers):
    """Return preprocessed images of `SIZES` with their objects."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for number in numbers:
        boxes, classes = objects()[number]
        size = SIZES[number]
        info = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}
        record = DetDataSample(metainfo=info)
        record.gt_instances = InstanceData(bboxes=boxes, labels=classes)
        samples.append(record)
    # MMDetection reads images as BGR and converts them to RGB.
    images = [image(*SIZES[number]).flip(0) for number in numbers]
    return model.data_preprocessor({"inputs": images, "data_samples": samples}, training=True)


def predictions(name, model, data):
    """Return the logits and boxes of the last layer, with the boxes as (x0, y0, x1, y1) in pixels."""
    inputs, samples = data["inputs"], data["data_samples"]
    features = model.extract_feat(inputs)
    if name == "detr":
        logits, boxes = model.bbox_head(**model.forward_transformer(features, samples))
        center, sides = boxes[-1].split(2, dim=-1)
        scale = torch.tensor([[w, h, w, h] for h, w in (each.img_shape for each in samples)])
        return logits[-1], torch.cat([center - sides / 2, center + sides / 2], dim=-1) * scale[:, None]
    from mmdet.structures.bbox import bbox2roi

    head, infos = model.roi_head, [each.metainfo for each in samples]
    found = model.rpn_head.predict(features, samples)
    boxes, vectors = [each.bboxes for each in found], torch.stack([each.features for each in found])
    for stage in range(LAYERS):
        results = head._bbox_forward(stage, features, bbox2roi(boxes), vectors, infos)
        boxes, vectors = results["detached_proposals"], results["object_feats"]
    return results["cls_score"], torch.stack(boxes)


def losses(model, data):
    """Return the sum over all layers of each loss."""
    sums = {}
    for name, value in model.loss(data["inputs"], data["data_samples"]).items():
        kind = name.rpartition(".")[2]
        if kind.startswith("loss"):
            sums[kind] = sums.get(kind, 0.0) + float(value)
    return {kind: round(value, 6) for kind, value in sums.items()}


@torch.no_grad()
def main(path):
    sys.modules["mmcv._ext"] = _Absent("mmcv._ext")
    from mmdet.utils import register_all_modules

    register_all_modules()

    record = {"versions": {p: metadata.version(p) for p in ("mmdet", "mmengine", "mmcv-lite", "torch", "torchvision")}}
    record["cases"] = {}
    for name in CASES:
        model = build(name)
        outputs = {}
        for number, size in enumerate(SIZES):
            logits, boxes = predictions(name, model, batch(model, number))
            outputs["x".join(map(str, size))] = {"logits": sample(logits), "boxes": sample(boxes)}
        both = batch(model, 0, 1)
        logits, boxes = predictions(name, model, both)
        record["cases"][name] = {
            "keys": {k: list(v.shape) for k, v in model.state_dict().items()},
            "outputs": outputs | {"batch": {"logits": sample(logits), "boxes": sample(boxes)}},
            "losses": losses(model, both),
        }
        print(name, len(record["cases"][name]["keys"]), "tensors", record["cases"][name]["losses"])
    Path(path).write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
