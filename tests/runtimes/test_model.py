"""An exported file is used like the run it was made from."""

from __future__ import annotations

import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import pvt_det
from pvt_det.errors import ConfigError
from pvt_det.inference.panoptic import PanopticPredictor
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.segmentor import Segmentor
from pvt_det.inference.tiling import TiledPredictor
from pvt_det.results import load_run
from pvt_det.run_folder import identify
from pvt_det.runtimes import metadata as metadata_module
from pvt_det.runtimes import openvino_folder
from pvt_det.runtimes.metadata import load_model_config, portable_config, read_metadata
from pvt_det.runtimes.openvino_folder import GRAPH_NAME, OpenVINOBackend, import_openvino
from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("smallest_variant")
FILES = ("mine.onnx", "mine_openvino")
LOW = {"device": "cpu", "score_threshold": None}


@pytest.fixture(scope="module")
def eager(mask_rcnn_run):
    return Predictor(mask_rcnn_run, **LOW)


@pytest.fixture(scope="module", params=FILES)
def predictor(request, exported):
    return Predictor(exported / request.param, score_threshold=None)


@pytest.fixture(scope="module")
def images():
    """Images of two sizes, one of them twice."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (50, 90), (64, 64))]


def assert_same(found, wanted):
    assert found.image_size == wanted.image_size
    assert found.pred_classes.tolist() == wanted.pred_classes.tolist()
    assert len(wanted) > 5
    torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor, rtol=0, atol=1e-2)
    for one, other in zip(found.pred_masks, wanted.pred_masks, strict=True):
        assert (np.asarray(one) != np.asarray(other)).mean() < 1e-3


def test_predictions_are_those_of_the_run(predictor, eager, images):
    assert predictor.class_names == eager.class_names
    for found, wanted in zip(predictor(images), eager(images), strict=True):
        assert_same(found, wanted)
    assert_same(predictor(images[1]), eager(images[1]))


def test_higher_threshold(exported, mask_rcnn_run, eager, images):
    scores = eager(images[0]).scores.sort().values
    middle = scores[len(scores) // 4 : -len(scores) // 4]
    gap = int(middle.diff().argmax())  # rounding cannot move a score to the other side
    threshold = float(middle[gap : gap + 2].mean())
    found, wanted = (
        Predictor(path, device="cpu", score_threshold=threshold)(images[0])
        for path in (exported / "mine.onnx", mask_rcnn_run)
    )
    assert_same(found, wanted)
    assert found.scores.min() > threshold


def test_copies_and_threads(predictor, eager, images):
    copy = pickle.loads(pickle.dumps(predictor))
    assert copy.fingerprint() == predictor.fingerprint() != eager.fingerprint()
    with ThreadPoolExecutor(3) as threads:
        for found, image in zip(threads.map(copy, images * 2), images * 2, strict=True):
            assert_same(found, eager(image))


def test_images_of_a_batch_do_not_affect_each_other(exported):
    path = exported / "mine_openvino" / GRAPH_NAME
    outputs = read_metadata(path).outputs
    function = OpenVINOBackend().open(path, outputs=outputs, threads=2)
    batch = np.random.default_rng(2).integers(0, 256, (5, 3, 64, 96), dtype=np.uint8)
    together, alone = function(batch), [function(image[None]) for image in batch]
    assert together["images"].tolist() == [n for n, each in enumerate(alone) for _ in each["scores"]]
    for name in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_allclose(together[name], np.concatenate([each[name] for each in alone]), atol=1e-4)


def test_tiles(predictor, eager):
    image = np.random.default_rng(1).integers(0, 256, (64, 160, 3), dtype=np.uint8)
    found, wanted = (TiledPredictor(each, 64)([image])[0] for each in (predictor, eager))
    assert found.pred_classes.tolist() == wanted.pred_classes.tolist()


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_precision_of_a_file_follows_the_processor(exported, images, tmp_path, monkeypatch, has_bf16, precision):
    folder = tmp_path / "int8_openvino"
    shutil.copytree(exported / "mine_openvino", folder)
    metadata = read_metadata(folder / GRAPH_NAME)
    config = portable_config(load_model_config(folder / GRAPH_NAME, training=False), precision="bf16")
    OpenVINOBackend().write_metadata(folder, replace(metadata, config=config).entries())
    capabilities = ["FP32", "INT8", *(["BF16"] if has_bf16 else [])]
    monkeypatch.setattr(import_openvino().Core, "get_property", lambda *_: capabilities)
    monkeypatch.setattr(metadata_module, "fastest_precision", openvino_folder.fastest_precision.__wrapped__)
    assert precision == load_model_config(folder / GRAPH_NAME, training=False).TEST.PRECISION
    if not has_bf16:
        assert_same(Predictor(folder, **LOW)(images[0]), Predictor(exported / "mine_openvino", **LOW)(images[0]))


@pytest.mark.skipif(openvino_folder.fastest_precision() != "bf16", reason="OpenVINO has no bf16 on this processor")
def test_bf16_of_openvino_is_close(exported, images):
    fp32, bf16 = (
        Predictor(exported / "mine_openvino", overrides=["TEST.PRECISION", precision], **LOW)(images[0])
        for precision in ("fp32", "bf16")
    )
    torch.testing.assert_close(bf16.scores[:5], fp32.scores[:5], rtol=0, atol=0.05)


def test_segmentor(exported_program, semantic_run, images):
    found, wanted = Segmentor(exported_program), Segmentor(semantic_run, device="cpu")
    assert len(np.unique(wanted(images[1]))) > 1
    for one, other in zip(found(images), wanted(images), strict=True):
        assert one.shape == other.shape
        assert (np.asarray(one) != np.asarray(other)).mean() < 1e-3
    with pytest.raises(ConfigError, match=r"mine\.pt2 is the config of a semantic segmentation model"):
        Predictor(exported_program)


@pytest.mark.slow
def test_panoptic_predictor(panoptic_small_run, shapes, images, tmp_path):
    pvt_det.export(panoptic_small_run, tmp_path / "mine.pt2", images=[shapes / "val"])
    low = {"score_threshold": 0.1, "device": "cpu"}
    found, wanted = (PanopticPredictor(path, **low) for path in (tmp_path / "mine.pt2", panoptic_small_run))
    assert found.class_names == wanted.class_names
    for one, other in zip(found(images), wanted(images), strict=True):
        assert (one.ids != other.ids).mean() < 1e-3
        assert {info["isthing"] for info in other.segments_info} == {True, False}
        for info, expected in zip(one.segments_info, other.segments_info, strict=True):
            assert (info["id"], info["category_id"]) == (expected["id"], expected["category_id"])
            assert info.get("score") == pytest.approx(expected.get("score"), abs=1e-4)
    # Its own `forward`, which evaluation uses, is that of Detectron2's model.
    for image in images[1:]:
        record = wanted.preparation(image)
        with torch.no_grad():
            (one,), (other,) = found._model([record]), wanted._model([record])
        assert (one["panoptic_seg"][0] != other["panoptic_seg"][0]).float().mean() < 1e-3
        assert [info["category_id"] for info in one["panoptic_seg"][1]] == [
            info["category_id"] for info in other["panoptic_seg"][1]
        ]
        torch.testing.assert_close(one["sem_seg"], other["sem_seg"], rtol=0, atol=1e-3)
    with pytest.raises(ConfigError, match=r"mine\.pt2 is the config of a panoptic segmentation model"):
        Predictor(tmp_path / "mine.pt2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"score_threshold": 0.01},
            r"score threshold 0\.01: .*mine\.onnx only .* above 0\.05\. .*_TEST 0\.01",
        ),
        ({"overrides": ["TEST.DETECTIONS_PER_IMAGE", "7"]}, r"DETECTIONS_PER_IMAGE = 7: .* exported with 100, which"),
        ({"overrides": ["MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.7"]}, r"NMS_THRESH_TEST = 0\.7: .* cannot be changed"),
        ({"overrides": ["TEST.AUG.ENABLED", "True"]}, r"TEST\.AUG\.ENABLED = True: .* cannot be changed"),
        ({"overrides": ["TEST.PRECISION", "bf16"]}, r"ONNX Runtime runs .* in fp32\. .*--format openvino for bf16"),
        ({"device": "cuda"}, "ONNX Runtime runs .* on the CPU"),
        ({"weights": "model_final.pth"}, r"--weights model_final\.pth has no effect: .*mine\.onnx contains"),
        ({"overrides": ["MODEL.NOPE", "1"]}, r"unknown key MODEL\.NOPE"),
    ],
)
def test_options_without_effect_are_refused(exported, options, message):
    with pytest.raises(ConfigError, match=message):
        Predictor(exported / "mine.onnx", **options)


@pytest.fixture(scope="module")
def data(eager, shapes, tmp_path_factory):
    """Annotations that agree with most detections of the run."""
    content = json.loads((shapes / "annotations/instances_val.json").read_text())
    content["annotations"] = []
    for image in content["images"]:
        found = eager(shapes / "val" / image["file_name"])
        for box, label in zip(found.pred_boxes.tensor[:10].tolist(), found.pred_classes.tolist(), strict=False):
            x0, y0, x1, y1 = box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    file = tmp_path_factory.mktemp("annotations") / "instances.json"
    file.write_text(json.dumps(content))
    return file, shapes / "val"


def test_evaluation_and_report(exported, mask_rcnn_run, data, tmp_path, monkeypatch):
    """The metrics are those of the run, and belong to the exported file."""
    for name in FILES:
        (tmp_path / name).symlink_to(exported / name)
    wanted = pvt_det.evaluate(mask_rcnn_run, data=data, output=tmp_path / "run").metrics
    assert wanted["bbox"]["AP"] > 30
    words = ["--val-json", data[0], "--val-images", data[1]]
    assert run_command("eval", [tmp_path / "mine.onnx", *words]) == 0
    found = pvt_det.evaluate(tmp_path / "mine_openvino", data=data, against=tmp_path / "mine.onnx")
    assert found.output == tmp_path / "mine_openvino_evaluation"
    assert (found.output / "report.html").is_file()
    for path in (tmp_path / name for name in FILES):
        results = load_run(path)
        for task in ("bbox", "segm"):
            assert results.metrics[task]["AP"] == pytest.approx(wanted[task]["AP"], abs=0.5)
        file = path / "model.xml" if path.is_dir() else path
        assert results.checkpoints["evaluated"].sha256 == identify(file)[0]
        assert results.parameters == load_run(tmp_path / "run").parameters
        assert results.environment["runtime"].endswith(", fp32")
    assert run_command("report", [tmp_path / "mine.onnx", "--against", tmp_path / "mine_openvino"]) == 0
    assert (tmp_path / "mine_onnx_evaluation/report.html").is_file()
    # The config of the run with the weights of the file is the same, unless the config does not fit.
    monkeypatch.setattr("pvt_det.api.write_page", lambda *paths: None)  # drawing it takes long
    words = [
        mask_rcnn_run,
        "--weights",
        tmp_path / "mine.onnx",
        "--output",
        tmp_path / "both",
        "--device",
        "cpu",
        *words,
    ]
    assert run_command("eval", words) == 0
    both, own = load_run(tmp_path / "both"), load_run(tmp_path / "mine.onnx")
    assert both.metrics == own.metrics
    assert both.checkpoints["evaluated"].sha256 == own.checkpoints["evaluated"].sha256
    with pytest.raises(ConfigError, match=r"NMS_THRESH_TEST = 0\.7: .*mine\.onnx was exported with 0\.5"):
        run_command("eval", [*words, "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.7"])


def test_predict_command(exported, shapes, tmp_path, capsys):
    words = [shapes / "val", "--config-file", exported / "mine_openvino", "--output", tmp_path / "out", "--no-pictures"]
    assert run_command("predict", [*words, "--score-threshold", "0.1"]) == 0
    assert "objects in 3 images" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out/detections.json").read_text())) > 5
