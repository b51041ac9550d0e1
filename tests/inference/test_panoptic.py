"""Panoptic segmentation: Detectron2's segments, files in COCO's panoptic format, and options of the command."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from hotcoco.panoptic import PanopticEval
from PIL import Image

import pvt_det
from pvt_det.config import load_config
from pvt_det.data.images import read_image
from pvt_det.data.mapper import build_augmentations
from pvt_det.data.segmentation.folders import panoptic_folder
from pvt_det.errors import ConfigError, DataError
from pvt_det.inference.load import load_predictor
from pvt_det.inference.panoptic import PanopticPredictor
from pvt_det.inference.segments import PanopticSegments, measured
from pvt_det.inference.uploads import Results
from pvt_det.weights import load_pretrained
from tests.command_line import run_command

NAMES = ("circle", "square", "triangle", "star", "background")


@pytest.fixture(scope="module")
def panoptic_run(repo_root, shapes, tmp_path_factory):
    """A run folder of a Panoptic FPN with random weights that finds objects of all scores, and background."""
    folder = tmp_path_factory.mktemp("panoptic")
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.PVT.VARIANT": "pvt_v2_b0",
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "INPUT.MIN_SIZE_TEST": 64,
        "TEST.DETECTIONS_PER_IMAGE": 20,
        "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.CLASS_NAMES": list(NAMES[:4]),
        "DATASETS.VAL_JSON": shapes / "annotations/instances_val.json",
        "DATASETS.VAL_IMAGES": shapes / "val",
        "DATASETS.VAL_LABELS": shapes / "panoptic_stuff_val",
        "DATASETS.VAL_PANOPTIC_JSON": shapes / "annotations/panoptic_val.json",
        "OUTPUT_DIR": folder,
    }
    words = [str(word) for pair in keys.items() for word in pair]
    cfg = load_config(repo_root / "configs/shapes/panoptic_fpn_pvt_tiny.yaml", words, training=False)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for part in (model.roi_heads, model.proposal_generator):
            for name, parameter in part.named_parameters():
                if parameter.dim() > 1:
                    last = any(word in name for word in ("cls_score", "bbox_pred", "objectness", "anchor_deltas"))
                    parameter.normal_(0, 0.1 if last else (2 / parameter[0].numel()) ** 0.5)
        head = model.sem_seg_head.predictor
        head.weight.normal_()
        pixels = torch.from_numpy(read_image(min((shapes / "val").iterdir()), "RGB").transpose(2, 0, 1).copy())
        logits = model.eval().inference([{"image": pixels}], do_postprocess=False)[1][0]
        # Most pixels, but not all, are background.
        head.bias -= logits.mean((1, 2))
        head.bias[1] += logits.std()
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture(scope="module")
def predictor(panoptic_run):
    return PanopticPredictor(panoptic_run, device="cpu")


@pytest.fixture
def photo(shapes) -> Path:
    return min((shapes / "val").iterdir())


def detectron2_output(cfg, folder, pixels: np.ndarray) -> dict:
    """Run Detectron2's model with its own postprocessing on an image `H×W×3`, RGB."""
    model = build_model(cfg).eval()
    load_pretrained(model, str(folder / "model_final.pth"))
    resized = T.AugInput(pixels)
    T.AugmentationList(build_augmentations(cfg, is_train=False))(resized)
    image = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
    with torch.no_grad():
        return model([{"image": image, "height": pixels.shape[0], "width": pixels.shape[1]}])[0]


@pytest.mark.parametrize("overlap", ["0.1", "0.5"])
def test_segments_are_those_of_detectron2(panoptic_run, photo, overlap):
    pixels = np.asarray(Image.fromarray(read_image(photo, "RGB")).resize((150, 90)))
    overrides = ["MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", overlap]
    # Results of a batch differ in the last digits.
    predictor = PanopticPredictor(panoptic_run, overrides=overrides, batch_size=1, device="cpu")
    assert predictor.class_names == NAMES
    found, mirrored = predictor([pixels, pixels[:, ::-1]])
    expected_ids, expected = detectron2_output(predictor.cfg, panoptic_run, pixels)["panoptic_seg"]
    assert (found.ids.dtype, found.ids.shape) == (np.int32, (90, 150))
    np.testing.assert_array_equal(found.ids, expected_ids.numpy())
    assert not np.array_equal(found.ids, mirrored.ids)
    assert len(found) == len(expected) > 3
    for ours, theirs in zip(found.segments_info, expected, strict=True):
        offset = 0 if theirs["isthing"] else 3  # their stuff classes are 0 for things and 1 for background
        assert (ours["id"], ours["isthing"]) == (theirs["id"], theirs["isthing"])
        assert ours["category_id"] == theirs["category_id"] + offset
        assert ours.get("score") == pytest.approx(theirs.get("score"), abs=1e-5)
        rows, columns = np.nonzero(expected_ids.numpy() == ours["id"])
        left, top, width, height = ours["bbox"]
        assert (ours["area"], left, top) == (len(rows), columns.min(), rows.min())
        assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())
    assert {info["isthing"] for info in found.segments_info} == {True, False}


def test_thresholds(panoptic_run, predictor, photo):
    def scores(**options) -> list[float]:
        keys = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.4", "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": "1.0"}
        keys["TEST.DETECTIONS_PER_IMAGE"] = "100"
        overrides = [word for pair in keys.items() for word in pair]
        found = PanopticPredictor(panoptic_run, overrides=overrides, device="cpu", **options)(photo)
        return [info["score"] for info in found.segments_info if info["isthing"]]

    assert predictor.score_threshold == 0.5
    default = scores()
    assert min(default) >= 0.5
    low = scores(score_threshold=0.3)
    assert 0.3 <= min(low) < 0.4, "the box head drops what is below its own threshold"
    assert low[: len(default)] == default
    area = ["MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "4096"]
    assert PanopticPredictor(panoptic_run, overrides=area, device="cpu")(photo).shares() == {}
    with pytest.raises(ConfigError, match=r"score threshold 1\.5: expected a number from 0 to 1"):
        PanopticPredictor(panoptic_run, score_threshold=1.5)
    twice = ["MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", "0.3"]
    with pytest.raises(ConfigError, match=r"given twice: 0\.4 and MODEL\.PANOPTIC_FPN"):
        PanopticPredictor(panoptic_run, overrides=twice, score_threshold=0.4)


def test_wrong_predictor_names_the_right_one(panoptic_run, segmentor_run, repo_root):
    with pytest.raises(ConfigError, match=r"a panoptic .* Expected a detector\. Use pvt_det\.PanopticPredictor for"):
        pvt_det.Predictor(panoptic_run)
    with pytest.raises(ConfigError, match=r"Expected a semantic .* Use pvt_det\.PanopticPredictor for"):
        pvt_det.Segmentor(panoptic_run)
    with pytest.raises(ConfigError, match=r"Expected a panoptic .* Use pvt_det\.Segmentor for"):
        pvt_det.PanopticPredictor(segmentor_run)
    with pytest.raises(ConfigError, match=r"Expected a panoptic .* Use pvt_det\.Predictor for"):
        pvt_det.PanopticPredictor(repo_root / "configs/mask_rcnn_pvt_tiny.yaml", "any.pth")
    assert isinstance(load_predictor(panoptic_run, device="cpu"), pvt_det.PanopticPredictor)


def test_augmentation_is_refused(panoptic_run):
    with pytest.raises(ConfigError, match="PanopticFPN does not support test-time augmentation"):
        PanopticPredictor(panoptic_run, overrides=["TEST.AUG.ENABLED", "True"], device="cpu")


def segments(ids, *infos, image=None) -> PanopticSegments:
    ids = np.array(ids, np.int32)
    return PanopticSegments(ids, measured(ids, infos), ("cat", "dog", "sky", "sea"), 2, image)


def thing(number: int, category: int, score: float) -> dict:
    return {"id": number, "category_id": category, "isthing": True, "score": score}


def stuff(number: int, category: int) -> dict:
    return {"id": number, "category_id": category, "isthing": False}


def example(image=None) -> PanopticSegments:
    ids = [[1, 1, 2, 3], [1, 1, 0, 3], [4, 4, 4, 4]]
    infos = (thing(1, 0, 0.9), thing(2, 0, 0.8), stuff(3, 2), stuff(4, 3), thing(5, 1, 0.7))
    return segments(ids, *infos, image=image)


def test_counts_shares_and_classes_to_keep():
    found = example()
    assert len(found) == 4, "a segment without a pixel is no segment"
    assert found.counts() == {"cat": 2}
    assert found.shares() == {"sea": 4 / 12, "sky": 2 / 12}
    assert found.describe() == "2 cat; sea 33%; sky 17%"
    kept = found.keep_classes([0, 2])
    np.testing.assert_array_equal(kept.ids, [[1, 1, 2, 3], [1, 1, 0, 3], [0, 0, 0, 0]])
    assert (kept.describe(), kept.keep_classes([2]).describe()) == ("2 cat; sky 17%", "sky 17%")
    assert kept.keep_classes([1]).describe() == "no segments"
    again = pickle.loads(pickle.dumps(found))
    assert again.segments_info == found.segments_info


def test_drawing_shows_each_segment_in_its_color():
    pixels = np.full((60, 80, 3), 90, np.uint8)
    found = example(pixels)
    found.ids = found.ids.repeat(20, axis=0).repeat(20, axis=1)
    drawn = found.plot(80)
    assert drawn.shape == (60, 80, 3)
    assert (drawn[30, 50] == 90).all(), "pixels without a segment are unchanged"
    inside = {name: tuple(drawn[y, x].tolist()) for name, (y, x) in {"cat": (4, 8), "sky": (30, 75)}.items()}
    assert len(set(inside.values())) == 2
    with pytest.raises(ConfigError, match="image of these predictions is not known"):
        example().plot()
    changed = example(pixels)
    with pytest.raises(DataError, match="80x60 pixels, but the predictions are for 4x3"):
        changed.plot()


def test_command_writes_cocos_panoptic_format_with_the_quality_of_the_evaluation(
    panoptic_run, shapes, tmp_path, capsys
):
    words = [str(shapes / "val"), "--config-file", str(panoptic_run), "--device", "cpu", "--output", tmp_path / "out"]
    assert run_command("predict", [*words, "--batch-size", "1"]) == 0
    printed = capsys.readouterr()
    written = json.loads((tmp_path / "out/panoptic.json").read_text())
    count = sum(len(annotation["segments_info"]) for annotation in written["annotations"])
    assert f"{count} segments in 3 images: {tmp_path}/out/panoptic.json, {tmp_path}/out/panoptic, " in printed.out
    assert "image 1/3 " in printed.err
    assert [(c["id"], c["name"], c["isthing"]) for c in written["categories"]] == [
        (number, name, int(name != "background")) for number, name in enumerate(NAMES, start=1)
    ]
    assert len(list((tmp_path / "out/pictures").iterdir())) == 3
    for annotation in written["annotations"]:
        png = np.asarray(Image.open(tmp_path / "out/panoptic" / annotation["file_name"])).astype(int)
        ids = png @ [1, 256, 65536]
        areas = {info["id"]: info["area"] for info in annotation["segments_info"]}
        assert areas == {int(i): int((ids == i).sum()) for i in np.unique(ids) if i}

    # The ids of images and categories are those of the ground truth after matching names.
    truth = json.loads((shapes / "annotations/panoptic_val.json").read_text())
    image_ids = {Path(image["file_name"]).name: image["id"] for image in truth["images"]}
    numbers = {image["id"]: image_ids[Path(image["file_name"]).name] for image in written["images"]}
    category_ids = {category["name"]: category["id"] for category in truth["categories"]}
    names = {category["id"]: category["name"] for category in written["categories"]}
    for annotation in written["annotations"]:
        annotation["image_id"] = numbers[annotation["image_id"]]
        for info in annotation["segments_info"]:
            info["category_id"] = category_ids[names[info["category_id"]]]
    (tmp_path / "found.json").write_text(json.dumps(truth | {"annotations": written["annotations"]}))
    folders = {
        "gt_folder": str(panoptic_folder(shapes / "annotations/panoptic_val.json")),
        "pred_folder": str(tmp_path / "out/panoptic"),
    }
    evaluator = PanopticEval(truth, str(tmp_path / "found.json"), **folders)
    evaluator.evaluate()
    quality = {key: 100 * value for key, value in evaluator.results()["All"].items() if key in ("pq", "sq", "rq")}
    expected = pvt_det.evaluate(panoptic_run, output=tmp_path / "eval").metrics["panoptic_seg"]
    assert quality == pytest.approx({key: expected[key.upper()] for key in ("pq", "sq", "rq")}, abs=1e-9)
    assert expected["PQ"] > 0


def test_command_keeps_classes_and_refuses_options_of_detectors(panoptic_run, predictor, photo, tmp_path):
    words = [str(photo), "--config-file", str(panoptic_run), "--device", "cpu"]
    few = [*words, "--output", tmp_path / "few", "--no-pictures", "--classes", "background", "--score-threshold", "0.9"]
    assert run_command("predict", few) == 0
    (annotation,) = json.loads((tmp_path / "few/panoptic.json").read_text())["annotations"]
    assert {info["category_id"] for info in annotation["segments_info"]} == {5}
    assert not (tmp_path / "few/pictures").exists()
    for option in (["--crops"], ["--tile", "64"], ["--overlap", "0"], ["--format", "yolo"]):
        with pytest.raises(ConfigError, match=rf"{option[0]} is for detectors, .* is a panoptic segmentation model"):
            run_command("predict", [*words, *option])
    with pytest.raises(ConfigError, match=r"--classes backgruond: .*Did you mean background"):
        run_command("predict", [*words, "--output", tmp_path / "typo", "--classes", "backgruond"])


def test_page_gives_the_segments(predictor, photo, tmp_path):
    found, picture, text, files = Results(predictor, tmp_path).predict(None, str(photo), 0.5)
    assert text == predictor(photo).describe()
    content, png = (Path(file) for file in files)
    (annotation,) = json.loads(content.read_text())["annotations"]
    assert annotation["file_name"] == png.name
    ids = np.asarray(Image.open(png)).astype(int) @ [1, 256, 65536]
    np.testing.assert_array_equal(ids, found.prediction.ids)
    assert picture.is_file()


def test_merged_parts_equal_an_undivided_prediction(panoptic_run, shapes, tmp_path, capsys):
    words = [shapes / "val", "--config-file", panoptic_run, "--device", "cpu", "--quiet", "--batch-size", 1]
    assert run_command("predict", [*words, "--output", tmp_path / "whole"]) == 0
    assert run_command("predict", [*words, "--output", tmp_path / "out", "--parts", 2]) == 0
    capsys.readouterr()
    assert run_command("predict", ["--merge", tmp_path / "out"]) == 0
    segments = sum(
        len(each["segments_info"]) for each in json.loads((tmp_path / "whole/panoptic.json").read_text())["annotations"]
    )
    assert f"{segments} segments in 3 images: {tmp_path}/out/panoptic.json, " in capsys.readouterr().out
    files = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert len(files) == 9  # one lock, two tables, three pictures and three files of ids
    for file in files:
        if file.name != ".lock":
            assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
