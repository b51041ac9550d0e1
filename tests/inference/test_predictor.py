"""`Predictor` matches evaluation for every kind of input, and rejects invalid inputs."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import pvt_det
from pvt_det.api import evaluate
from pvt_det.config import load_config
from pvt_det.errors import CheckpointError, ConfigError, DataError
from pvt_det.inference.base import class_names
from pvt_det.inference.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(untrained_run):
    return Predictor(untrained_run, device="cpu", batch_size=3, score_threshold=None)


@pytest.fixture(scope="module")
def files(shapes):
    return sorted((shapes / "val").iterdir())


def assert_close(found, wanted, tolerance=1e-3):
    """Compare detections in any order. Of an untrained model, a few differ: rounding decides between equal scores."""
    assert (found.image_size, len(found)) == (wanted.image_size, len(wanted))
    rows = [torch.cat([each.pred_boxes.tensor, each.pred_classes[:, None]], 1) for each in (found, wanted)]
    distance, nearest = (rows[0][:, None] - rows[1][None]).abs().amax(dim=2).min(dim=0)
    same = distance <= tolerance
    assert same.sum() >= 0.95 * len(same)
    torch.testing.assert_close(found.scores[nearest[same]], wanted.scores[same], rtol=0, atol=1e-5)


def test_predictions_match_evaluation(predictor, untrained_run, shapes, tmp_path):
    weights = str(untrained_run / "model_final.pth")
    cfg = load_config(untrained_run / "config.yaml", ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path)])
    evaluate(cfg)
    results = json.loads((tmp_path / "inference/instances_val/coco_instances_results.json").read_text())
    images = json.loads((shapes / "annotations/instances_val.json").read_text())["images"]
    assert len(results) > 20
    for image in images:
        found = predictor(shapes / "val" / image["file_name"])
        wanted = [result for result in results if result["image_id"] == image["id"]]
        assert found.scores.tolist() == pytest.approx([result["score"] for result in wanted], abs=1e-5)
        assert (found.pred_classes + 1).tolist() == [result["category_id"] for result in wanted]
        boxes = found.pred_boxes.tensor.clone()
        boxes[:, 2:] -= boxes[:, :2]
        torch.testing.assert_close(boxes, torch.tensor([result["bbox"] for result in wanted]), rtol=0, atol=1e-3)


def test_files_arrays_and_lists_give_the_same_predictions(predictor, files):
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    # The cropped images have a different size after resizing, so they form separate batches.
    mixed = [*files, arrays[0][:40], arrays[1], arrays[1][:40]]
    for found, image in zip(predictor(mixed), mixed, strict=True):
        assert_close(found, predictor(image))
    assert_close(predictor(arrays[2]), predictor(str(files[2])))
    assert predictor([]) == []


def test_pillow_images_are_read_like_files(predictor, files, tmp_path):
    """Rotated by their EXIF orientation, and of any mode, in lists too."""
    photo = Image.open(files[0]).convert("RGB").crop((0, 0, 60, 40))
    exif = Image.Exif()
    exif[274] = 6
    for name, image, options in (
        ("rotated.jpg", photo, {"exif": exif}),
        ("rotated.png", photo, {"exif": exif}),
        ("rotated.tif", photo, {"exif": exif}),
        ("palette.png", photo.quantize(16), {}),
        ("gray.png", photo.convert("L"), {}),
        ("alpha.png", photo.convert("RGBA"), {}),
    ):
        image.save(tmp_path / name, **options)
        wanted = predictor(tmp_path / name)
        assert wanted.image_size == ((60, 40) if name.startswith("rotated") else (40, 60))
        opened, decoded = Image.open(tmp_path / name), Image.open(tmp_path / name)
        decoded.load()
        for found in predictor([opened, decoded]):
            assert_close(found, wanted)
            assert np.array_equal(found.plot(), wanted.plot())
    with pytest.raises(DataError, match=r"image from Pillow has 32-bit pixels \(mode F\)"):
        predictor(photo.convert("F"))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "rotated.jpg").read_bytes()[:-300])
    with pytest.raises(DataError, match=r"cut\.jpg is broken or cut short"):
        predictor(Image.open(tmp_path / "cut.jpg"))


def test_bf16_is_close_to_fp32(predictor, untrained_run, files):
    bf16 = Predictor(untrained_run, device="cpu", score_threshold=None, overrides=["TEST.PRECISION", "bf16"])
    dtypes = set()
    backbone = bf16._model.get_submodule("backbone.bottom_up")
    backbone.block4[0].mlp.fc1.register_forward_hook(lambda *arguments: dtypes.add(arguments[2].dtype))
    found, wanted = bf16(files[0]), predictor(files[0])
    assert dtypes == {torch.bfloat16}
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(found.scores[:5], wanted.scores[:5], rtol=0, atol=0.01)
    assert found.scores.tolist() != wanted.scores.tolist()


def test_images_are_rgb_for_models_trained_on_bgr(predictor, untrained_run, files):
    image = np.asarray(Image.open(files[0]).convert("RGB"))
    bgr = Predictor(untrained_run, device="cpu", score_threshold=None, overrides=["INPUT.FORMAT", "BGR"])
    assert_close(bgr(image), predictor(image[:, :, ::-1]))
    assert bgr(image).scores.tolist() != predictor(image).scores.tolist()


def test_threads_share_a_predictor(predictor, files):
    wanted = [predictor(file) for file in files]
    with ThreadPoolExecutor(4) as threads:
        for found, number in zip(threads.map(predictor, files * 4), [*range(len(files))] * 4, strict=True):
            assert_close(found, wanted[number])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([[1, 2]], "image is a list|is a list"),
        (np.zeros((2, 8, 8, 3), np.uint8), "as a list"),
        (np.zeros((8, 8, 3), np.float32), r"float32\. Expected"),
        (torch.zeros(3, 8, 8), "is a Tensor"),
        ("nowhere.png", "nowhere.png does not exist"),
    ],
)
def test_invalid_images_are_refused(predictor, files, image, message):
    with pytest.raises(DataError, match=message):
        predictor([files[0], image])


def test_invalid_image_in_a_list_is_named_by_its_index(predictor, files):
    with pytest.raises(DataError, match="image 1 is None"):
        predictor([files[0], None])


def test_damaged_file_is_named(predictor, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"damaged\.png"):
        predictor(tmp_path / "damaged.png")


def test_best_weights_of_a_run_are_the_default(untrained_run, tmp_path, predictor, files):
    run = tmp_path / "run"
    shutil.copytree(untrained_run, run)
    state = torch.load(run / "model_final.pth", weights_only=True)
    state["model"]["head.cls_score.bias"] -= 100
    torch.save(state, run / "model_best.pth")
    assert len(Predictor(run, device="cpu")(files[0])) == 0
    final = Predictor(run / "config.yaml", run / "model_final.pth", device="cpu", score_threshold=None)
    assert_close(final(files[0]), predictor(files[0]))
    (run / "model_best.pth").unlink()
    (run / "model_final.pth").unlink()
    with pytest.raises(CheckpointError, match=r"no model_best\.pth or model_final\.pth"):
        Predictor(run)


def test_score_threshold_keeps_higher_scores(predictor, untrained_run, files):
    found = predictor(files[0])
    threshold = float(found.scores.median())
    fewer = Predictor(untrained_run, device="cpu", score_threshold=threshold)(files[0])
    assert 0 < len(fewer) < len(found)
    assert fewer.scores.tolist() == [score for score in found.scores.tolist() if score > threshold]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"score_threshold": 50}, "score threshold 50"), ({"batch_size": 0}, "batch_size 0")],
)
def test_settings_out_of_range_are_refused(untrained_run, arguments, message):
    with pytest.raises(ConfigError, match=message):
        Predictor(untrained_run, **arguments)


def test_config_of_a_different_kind_of_model_is_refused(repo_root, tmp_path):
    with pytest.raises(ConfigError, match=r"contains no config\.yaml"):
        Predictor(tmp_path)
    with pytest.raises(ConfigError, match=r"Expected a detector\. Use pvt_det\.Segmentor"):
        Predictor(repo_root / "configs/semantic_fpn_pvt_tiny.yaml", "any.pth")
    with pytest.raises(ConfigError, match=r"RetinaNet\. Expected .*Use pvt_det\.Predictor"):
        pvt_det.Segmentor(repo_root / "configs/retinanet_pvt_tiny.yaml", "any.pth")


def test_class_names_come_from_the_run_or_the_data_set(predictor, repo_root):
    assert predictor.class_names == ("circle", "square", "triangle", "star")
    config = repo_root / "configs/retinanet_pvt_tiny.yaml"
    assert class_names(load_config(config))[:2] == ("person", "bicycle")
    assert class_names(load_config(config, ["MODEL.RETINANET.NUM_CLASSES", "2"])) == ("class 0", "class 1")


def test_package_exports_predictor():
    assert pvt_det.Predictor is Predictor
    with pytest.raises(AttributeError, match="Predicter"):
        pvt_det.Predicter  # noqa: B018


def test_score_threshold_applies_to_the_scores_of_the_detections(tmp_path, shapes):
    """ATSS applies its own threshold to class scores, which are higher than the scores of its detections."""
    config = tmp_path / "atss.yaml"
    config.write_text(
        "_BASE_: atss_pvt_v2_b2_3x\nMODEL:\n  DEVICE: cpu\n  PVT: {VARIANT: pvt_v2_b0}\n  FPN: {OUT_CHANNELS: 64}\n"
        "  ATSS: {NUM_CLASSES: 2, NUM_CONVS: 1, PRIOR_PROB: 0.5}\nDATASETS: {CLASS_NAMES: [a, b]}\n"
        "INPUT: {MIN_SIZE_TEST: 64}\n"
    )
    torch.manual_seed(0)
    model = build_model(load_config(config))
    torch.nn.init.normal_(model.head.centerness.weight, std=0.1)
    torch.save({"model": model.state_dict()}, tmp_path / "atss.pth")
    file = shapes / "val/000002.png"
    every, above = (Predictor(config, tmp_path / "atss.pth", device="cpu", score_threshold=t)(file) for t in (0.0, 0.3))
    assert 0 < len(above) < len(every)
    assert above.scores.min() > 0.3 > every.scores.min()
