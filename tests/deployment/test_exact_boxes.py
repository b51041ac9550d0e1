"""OpenVINO pools features at exact boxes also in bf16."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pvt_det.deployment import files
from pvt_det.runtimes.backends import BACKENDS
from pvt_det.utils.precision import has_fast_bf16


@pytest.mark.skipif(not has_fast_bf16(torch.device("cpu")), reason="needs instructions for bf16")
def test_masks_far_from_the_origin(exported, tmp_path, monkeypatch):
    """Without it, boxes at 1,300 pixels are multiples of 8."""
    outputs = ["boxes", "scores", "labels", "images", "masks"]
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 1300), dtype=np.uint8)
    wanted = BACKENDS["openvino"].open(exported / "mine_openvino/model.xml", outputs=outputs, threads=1)(image)
    monkeypatch.setattr(files, "keep_boxes_exact", lambda model: None)
    files.convert_to_openvino(exported / "mine.onnx", tmp_path / "plain_openvino", {})
    errors = []
    for folder in (exported / "mine_openvino", tmp_path / "plain_openvino"):
        function = BACKENDS["openvino"].open(folder / "model.xml", outputs=outputs, threads=1, precision="bf16")
        found = function(image)
        distances = np.abs(found["boxes"][:, None] - wanted["boxes"]).max(2)
        distances[found["labels"][:, None] != wanted["labels"]] = np.inf
        nearest = distances.argmin(1)
        errors.append(np.median(np.abs(found["masks"] - wanted["masks"][nearest]).max((1, 2))))
    assert errors[0] < 0.7 * errors[1], errors
