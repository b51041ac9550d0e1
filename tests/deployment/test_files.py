"""Exported files match the model, for any batch and image size."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from torch import nn

import pvt_det
from pvt_det.config import load_config
from pvt_det.deployment import files
from pvt_det.deployment.api import validation_images
from pvt_det.deployment.check import Parity, compare, run_eager
from pvt_det.deployment.graphs import build_graph
from pvt_det.errors import ConfigError, NumericError
from pvt_det.models import create_model
from pvt_det.runtimes.backends import BACKENDS
from pvt_det.runtimes.metadata import PANOPTIC
from pvt_det.utils.visualizer import draw
from tests.shallow import shallow
from tools import run_onnx as runner

EXAMPLE = torch.zeros(2, 3, 200, 140, dtype=torch.uint8)


def images(number: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, 3, height, width), dtype=np.uint8)


def check(model: nn.Module, kinds: tuple[files.Format, ...], folder: Path) -> None:
    for kind in kinds:
        graph = build_graph(model, kind=kind)
        path = folder / f"model{BACKENDS[kind].suffix}"
        metadata = {"task": "test", "outputs": json.dumps(graph.outputs)}
        files.write(files.trace(graph, EXAMPLE), path, kind, graph.outputs, metadata)
        assert BACKENDS[kind].read_metadata(path) == metadata
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()  # no paths of this machine
        function = BACKENDS[kind].open(path, outputs=graph.outputs, threads=1)
        parity = Parity()
        for batch in (images(1, 97, 130), images(3, 90, 200)):
            expected, got = run_eager(model, batch, bgr=False), function(batch)
            assert expected.keys() == got.keys() - {"logits"}
            compare(expected, got, parity, images=len(batch), limit=100, threshold=0.05)
        parity.require(kind)
        assert parity.detections > 50 or "boxes" not in expected


def test_semantic_fpn(build, tmp_path):
    check(build("semantic_fpn_pvt_tiny", small=True), ("onnx",), tmp_path)


def test_classifier_with_a_class_token(tmp_path):
    graph = build_graph(shallow(create_model("pvt_tiny", num_classes=5)))
    files.write(
        files.trace(graph, EXAMPLE), tmp_path / "c.pt2", "torch", graph.outputs, {"outputs": json.dumps(graph.outputs)}
    )
    function = BACKENDS["torch"].open(tmp_path / "c.pt2", outputs=graph.outputs, threads=1)
    for batch in (images(1, 40, 64), images(3, 100, 33)):
        expected = run_eager(graph, batch, bgr=False)["scores"]
        np.testing.assert_allclose(function(batch)["scores"], expected, atol=1e-5)


def test_part_that_no_output_needs_is_left_out(tmp_path):
    """The pyramid's P6 and P7 are such a part if the head reads neither. The file could be written, but not read."""

    class Doubled(nn.Module):
        def forward(self, images):
            with torch.autocast("cpu", enabled=False):
                images.float().sqrt()
            return (images.float() * 2,)

    path = tmp_path / "model.pt2"
    files.write(files.trace(Doubled(), EXAMPLE), path, "torch", ["doubled"], {"outputs": '["doubled"]'})
    found = BACKENDS["torch"].open(path, outputs=["doubled"], threads=1)(images(1, 30, 40))
    np.testing.assert_array_equal(found["doubled"], 2.0 * images(1, 30, 40))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ("retinanet_pvt_tiny", ("onnx", "torch")),
        ("atss_pvt_v2_b2_3x", ("onnx",)),
        ("gfl_pvt_v2_b2_3x", ("onnx",)),
        ("panoptic_fpn_pvt_small", ("onnx", "torch")),  # contains a Mask R-CNN
    ],
)
def test_detectors(build, config, kinds, tmp_path):
    check(build(config, small=True), kinds, tmp_path)
    import onnx

    model = onnx.load(tmp_path / "model.onnx")
    assert any(node.op_type == "NonMaxSuppression" for node in model.graph.node)


def test_folders_are_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "mine_openvino"

    def export(content: str, *, fails: bool) -> None:
        with files.unchecked(folder) as path:
            path.mkdir()
            (path / "model.xml").write_text(content)
            if fails:
                raise NumericError("differs")

    export("old", fails=False)
    with pytest.raises(NumericError, match="differs"):
        export("broken", fails=True)
    assert (folder / "model.xml").read_text() == "old"
    export("new", fails=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine_openvino"]
    assert (folder / "model.xml").read_text() == "new"
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"mine_openvino contains notes\.txt, which .* would be deleted"):
        files.require_free_folder(folder)
    # A link stays, and what it points to is replaced.
    folder, target = tmp_path / "link_openvino", folder
    folder.symlink_to(target)
    export("new", fails=False)
    assert folder.is_symlink()
    assert (target / "model.xml").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_model_that_detects_nothing_is_refused_before_it_is_traced(untrained_run, tmp_path, monkeypatch):
    monkeypatch.setattr("pvt_det.deployment.api.trace", lambda *_: pytest.fail("traced"))
    with pytest.raises(NumericError, match="detects nothing in the images, so an exported file could not be checked"):
        pvt_det.export(untrained_run, tmp_path / "mine.onnx", overrides={"MODEL.RETINANET.SCORE_THRESH_TEST": 0.999999})
    assert not list(tmp_path.iterdir())


def test_run_onnx_needs_no_torch(capsys):
    """`tools/run_onnx.py` resizes images and pastes masks without this package, torch or Detectron2."""
    assert runner.fit(np.zeros((300, 600, 3), np.uint8), 100, 150).shape == (75, 150, 3)
    assert runner.crop(np.zeros((300, 600, 3), np.uint8), 224).shape == (224, 224, 3)
    mask = np.ones((28, 28), np.float32)
    pasted = runner.paste(mask, np.array([10, 20, 30, 60], np.float32), (80, 50))
    assert pasted.shape == (80, 50)
    assert pasted[22:58, 12:28].all()
    assert not pasted[:19].any()
    assert not pasted[:, 32:].any()
    assert runner.main([__file__, "a.jpg"]) == 4
    assert f"error: {__file__} cannot be used: " in capsys.readouterr().err
    source = Path(runner.__file__).read_text()
    assert "pvt_det" not in source.replace("pvt-det", "")
    assert "torch" not in source
    assert "detectron2" not in source.lower()


def test_run_onnx_refuses_a_panoptic_model(monkeypatch, capsys):
    about = SimpleNamespace(custom_metadata_map={"task": PANOPTIC, "classes": "[]"})
    session = SimpleNamespace(get_modelmeta=lambda: about)
    monkeypatch.setattr(runner.onnxruntime, "InferenceSession", lambda path: session)
    assert runner.main(["mine.onnx", "a.jpg"]) == 4
    expected = "error: mine.onnx is a panoptic model. Run it with: pvt-det predict\n"
    assert capsys.readouterr().err == expected


def test_run_onnx_draws_like_predict():
    """The script has its own lines for boxes, colors and labels. They look the same."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    boxes = np.array([(100, 100, 300, 250), (120, 110, 310, 240), (400, 300, 560, 450)], np.float32)
    found = {"boxes": boxes, "scores": np.array([0.9, 0.8, 0.7], np.float32), "labels": np.array([0, 0, 1])}
    shown = runner.show(image, found, ["", "", ""], 0.5)
    objects = [
        {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(label), "score": 0.9}
        for box, label in zip(boxes, found["labels"], strict=True)
    ]
    drawn = draw(image[:, :, ::-1], objects[::-1], ["", "", ""], 640)[:, :, ::-1]
    for part in (np.s_[130:240, 90:320], np.s_[330:440, 390:570]):  # without the labels
        assert np.array_equal(shown[part], drawn[part])
    assert np.array_equal(runner.show(image, found, ["a", "b"], 0.95), image)


def test_run_onnx_labels_do_not_cover_each_other():
    image, taken = np.zeros((480, 640, 3), np.uint8), []
    rng = np.random.default_rng(0)
    for corner in rng.uniform(-20, 620, (100, 2)):
        runner.write(image, "blood cell 90%", np.array([*corner, *(corner + 60)]), (65, 85, 255), taken)
    assert len(taken) > 20
    covered = np.zeros(image.shape[:2], int)
    for left, top, right, bottom in taken:
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1
    assert (image.any(axis=2) == (covered > 0)).mean() > 0.95


def test_run_onnx_names_the_classes_of_a_label_map():
    labels = np.zeros((480, 640), np.uint8)
    labels[:, 400:] = 1
    first, second = (
        runner.show_labels(np.full((480, 640, 3), v, np.uint8), labels, ["sky", "road"]) for v in (10, 200)
    )
    fixed = (first == second).all(axis=2)  # what does not depend on the image: the plates of the names
    assert 100 < fixed[:, :400].sum() < 3000
    assert 100 < fixed[:, 400:].sum() < 3000
    assert np.abs(first[5, 5].astype(int) - first[5, 600]).max() > 40


def test_validation_images_of_a_segmentor_are_those_of_its_folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("b.jpg", "a.png", "notes.txt"):
        (tmp_path / "images" / name).touch()
    words = ["DATASETS.VAL_IMAGES", tmp_path / "images", "DATASETS.VAL_LABELS", tmp_path / "labels"]
    cfg = load_config("semantic_fpn_pvt_tiny", list(map(str, words)))
    assert validation_images(cfg) == tuple(str(tmp_path / "images" / name) for name in ("a.png", "b.jpg"))
    assert validation_images(load_config("semantic_fpn_pvt_tiny", list(map(str, words[:2])))) == ()
