"""Models are quantized where it costs little accuracy, and kept only if it does."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time

import numpy as np
import onnx
import pytest
import torch
import yaml
from torch import nn

from pvt_det.config import load_config
from pvt_det.data.images import read_image
from pvt_det.deployment import int8_export
from pvt_det.deployment.accuracy import Validation, largest_drop
from pvt_det.deployment.differences import differences
from pvt_det.deployment.files import convert_to_openvino, trace, write
from pvt_det.deployment.int8 import AccuracyControl, quantize
from pvt_det.deployment.int8_export import write_int8
from pvt_det.deployment.layers import onnx_operators, openvino_operators
from pvt_det.errors import ConfigError, DataError, NumericError
from pvt_det.inference.predictor import Predictor
from pvt_det.runtimes import metadata as metadata_module
from pvt_det.runtimes.backends import backend_of, find_exported
from pvt_det.runtimes.metadata import read_metadata
from pvt_det.runtimes.openvino_folder import GRAPH_NAME, import_openvino
from pvt_det.utils.console import get_console
from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("smallest_variant")


@pytest.fixture(scope="module")
def images(shapes):
    files = sorted((shapes / "val").iterdir())
    return [np.ascontiguousarray(read_image(file, "RGB").transpose(2, 0, 1)) for file in files]


@pytest.fixture(scope="module")
def source(exported):
    return exported / "mine_openvino"


@pytest.fixture(scope="module")
def metadata(source):
    return read_metadata(source / GRAPH_NAME)


@pytest.fixture(scope="module")
def quantized(source, images, metadata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8") / "mine_openvino"
    quantize(source, folder, images, metadata.entries())
    return folder


@pytest.fixture(scope="module")
def validation(mask_rcnn_run, shapes, tmp_path_factory):
    """The run's own detections as ground truth, so that its AP is high."""
    content = json.loads((shapes / "annotations/instances_val.json").read_text())
    content["annotations"] = []
    predictor = Predictor(mask_rcnn_run, device="cpu", score_threshold=None)
    for image in content["images"]:
        found = predictor(shapes / "val" / image["file_name"])[:10]
        for (x0, y0, x1, y1), label in zip(found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            polygon = {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "category_id": label + 1}
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image["id"], **box, **polygon}
            )
    file = tmp_path_factory.mktemp("annotations") / "instances.json"
    file.write_text(json.dumps(content))
    words = ["MODEL.DEVICE", "cpu", "DATASETS.VAL_JSON", str(file), "DATASETS.VAL_IMAGES", str(shapes / "val")]
    return Validation(load_config(mask_rcnn_run / "config.yaml", words, training=False))


def _open(path, *outputs):
    file = find_exported(path)
    return backend_of(file).open(file, outputs=outputs, threads=1)


def _int8_layers(path):
    """Return the names of the layers of a file whose inputs are quantized."""
    if path.suffix == ".onnx":
        nodes = onnx.load(path).graph.node
        rounded = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
        return {node.name for node in nodes if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[0] in rounded}
    return {
        operator.get_friendly_name()
        for operator in import_openvino().Core().read_model(path / GRAPH_NAME).get_ordered_ops()
        if operator.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
        and operator.input_value(0).get_node().get_type_name() == "FakeQuantize"
    }


@pytest.mark.parametrize("ending", [".onnx", "_openvino"])
def test_layers_with_weights_are_quantized_but_not_the_first_and_the_last_ones(
    exported, quantized, images, ending, tmp_path
):
    source = exported / f"mine{ending}"
    if ending == ".onnx":
        operators = onnx_operators(onnx.load(source))
        quantized = tmp_path / "int8.onnx"
        quantize(source, quantized, images, read_metadata(source).entries())
    else:
        operators = openvino_operators(import_openvino().Core().read_model(source / GRAPH_NAME))
    layers = {name: operator.weight for name, operator in operators.items() if operator.weight}
    found = _int8_layers(quantized)
    first, *kept = [weight for name, weight in layers.items() if name not in found]
    assert first == next(iter(layers.values()))
    assert set(kept) == {
        "proposals.head.objectness_logits.weight",
        "proposals.head.anchor_deltas.weight",
        "boxes.predictors.0.cls_score.weight",
        "boxes.predictors.0.bbox_pred.weight",
        "masks.heads.0.predictor.weight",
    }
    assert len(layers) > 40
    assert read_metadata(find_exported(quantized)) == read_metadata(find_exported(source))
    wanted, rounded = (_open(path, "scores")(images[0][None])["scores"] for path in (source, quantized))
    assert 0 < np.abs(wanted[:3] - rounded[:3]).max() < 0.1


def test_predictions_are_close_and_the_file_is_smaller(source, quantized, images):
    found, wanted = (
        Predictor(folder, score_threshold=None, device="cpu")(images[0].transpose(1, 2, 0))
        for folder in (quantized, source)
    )
    assert (found.scores[:3] - wanted.scores[:3]).abs().max() < 0.1
    assert (found.scores != wanted.scores[: len(found)]).any()
    sizes = [(folder / "model.bin").stat().st_size for folder in (quantized, source)]
    assert sizes[0] < 0.5 * sizes[1]


def _quantize_by_copy(quantized, monkeypatch):
    """Make `quantize` copy an int8 model. Returns a list that receives how each call shall search."""
    controls = []

    def copy(source, target, images, entries, control=None):
        controls.append(control)
        shutil.copytree(quantized, target)

    monkeypatch.setattr(int8_export, "quantize", copy)
    return controls


def test_loss_is_measured_and_limited(source, quantized, images, metadata, validation, tmp_path, monkeypatch):
    controls = _quantize_by_copy(quantized, monkeypatch)
    monkeypatch.setattr(int8_export, "fastest_precision", lambda: "fp32")
    monkeypatch.setattr(metadata_module, "fastest_precision", lambda: "fp32")
    options = {"validation": validation, "show": lambda step: None}
    report = write_int8(source, tmp_path / "a", images, metadata, max_drop=100.0, **options)
    assert set(report.before) == {"bbox AP", "segm AP"}
    assert report.before["bbox AP"] > 50
    assert 0 <= report.after["bbox AP"] < report.before["bbox AP"]
    assert not report.is_controlled
    drop = largest_drop(report.before, report.after)
    assert drop > 0
    with pytest.raises(NumericError, match=r"loses more than --max-drop 0 \(bbox AP .* to .*, segm AP"):
        write_int8(source, tmp_path / "b", images, metadata, max_drop=0.0, **options)
    assert [control is None for control in controls] == [True, True, False]
    # What the search compares is the largest loss of any metric, on the same images.
    every, limit, measure = range(len(validation)), controls[-1].max_drop, controls[-1].measure
    exact, rounded = (Predictor(folder, device="cpu")._model._function for folder in (source, quantized))
    assert (limit, measure(exact, every), measure(exact, [0])) == (0.0, 100.0, 100.0)
    assert measure(rounded, every) == pytest.approx(100 - drop)
    assert measure(rounded, [0]) != measure(rounded, every)


def test_fp32_takes_the_place_of_bf16_where_that_loses_too_much(
    source, quantized, images, metadata, validation, tmp_path, monkeypatch
):
    controls = _quantize_by_copy(quantized, monkeypatch)
    monkeypatch.setattr(int8_export, "fastest_precision", lambda: "bf16")
    compared = []
    monkeypatch.setattr(int8_export, "_compare", lambda *arguments: compared.append(arguments[-1]) or (0, []))
    measured = {"exact": 50.0, "bf16": 49.2, "fp32": 49.6}
    monkeypatch.setattr(int8_export, "_model", lambda cfg, path, precision="": "exact" if path == source else precision)
    monkeypatch.setattr(validation, "metrics", lambda model, indices=None: {"bbox AP": measured[model]})
    options = {"validation": validation, "show": lambda step: None}
    for max_drop, precision in ((0.9, "bf16"), (0.5, "fp32")):
        folder = tmp_path / precision
        report = write_int8(source, folder, images, metadata, max_drop=max_drop, **options)
        assert (report.precision, report.after) == (precision, {"bbox AP": measured[precision]})
        assert compared.pop() == precision
    # The next one to open the file computes in the same format.
    config = yaml.safe_load(read_metadata(folder / GRAPH_NAME).config)
    assert config.get("TEST", {}).get("PRECISION", "fp32") == "fp32"
    assert controls == [None, None]
    with pytest.raises(NumericError, match=r"more than --max-drop 0.3 \(bbox AP 50.00 to 49.60"):
        write_int8(source, tmp_path / "b", images, metadata, max_drop=0.3, **options)
    assert controls[-1].max_drop == 0.3


class _Tokens(nn.Module):
    """Linear layers after a LayerNorm whose channels differ in size, as those of transformers do."""

    outputs = ("scores",)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        with torch.no_grad():
            self.norm.weight[:] = torch.logspace(-1, 2, 16)

    def forward(self, image):
        tokens = self.embed(image.float() / 255).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = tokens + layer(self.norm(tokens))
        return tokens.mean(1)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A folder with the model as `exact.onnx` and `exact_openvino`."""
    folder = tmp_path_factory.mktemp("tokens")
    program = trace(_Tokens(), torch.zeros(2, 3, 36, 44, dtype=torch.uint8))
    write(program, folder / "exact.onnx", "onnx", ["scores"], {})
    convert_to_openvino(folder / "exact.onnx", folder / "exact_openvino", {})
    return folder


def test_ctrl_c_ends_the_calibration(tokens, tmp_path):
    taken = []

    class Images(list):
        def __iter__(self):
            for image in super().__iter__():
                taken.append(image)
                if len(taken) == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.5)
                yield image

    with pytest.raises(KeyboardInterrupt):
        quantize(tokens / "exact_openvino", tmp_path / "a_openvino", Images(np.zeros((500, 3, 32, 32), np.uint8)), {})
    assert len(taken) < 500
    assert list(tmp_path.iterdir()) == []


def test_only_our_own_progress_is_shown(tokens, tmp_path, capsys):
    def accuracy(function, indices):
        print("NNCF")
        get_console().print("measuring")
        return 50.0

    images = list(np.zeros((2, 3, 32, 32), np.uint8))
    logger, handler = logging.getLogger("nncf"), logging.StreamHandler()
    logger.addHandler(handler)
    quantize(tokens / "exact_openvino", tmp_path / "a_openvino", images, {}, AccuracyControl(accuracy, 2, 1.0))
    logger.removeHandler(handler)
    get_console().print("done")
    assert set(capsys.readouterr().out.splitlines()) == {"measuring", "done"}
    assert handler.level == logging.NOTSET  # it belongs to the program


@pytest.mark.parametrize("ending", [".onnx", "_openvino"])
def test_search_keeps_only_some_layers_in_floating_point(tokens, ending, tmp_path):
    images = list(np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8))
    exact = _open(tokens / f"exact{ending}", "scores")

    def accuracy(function, indices):
        wanted, found = (np.stack([model(images[i][None])["scores"] for i in indices]) for model in (exact, function))
        return 100 - 100 * np.abs(found - wanted).mean() / np.abs(wanted).mean()

    def quantized(name, max_drop):
        control = AccuracyControl(accuracy, len(images), max_drop)
        quantize(tokens / f"exact{ending}", tmp_path / name, images, {}, control)
        return len(_int8_layers(tmp_path / name)), accuracy(_open(tmp_path / name, "scores"), range(len(images)))

    layers, before = quantized(f"any{ending}", 100.0)
    limit = 0.8 * (100 - before)
    kept, after = quantized(f"searched{ending}", limit)
    assert before < 100 - limit <= after
    assert 0 < kept < layers


def test_metrics_without_objects_are_left_out_of_the_drop():
    nan = float("nan")
    assert largest_drop({"bbox AP": 5.0, "segm AP": nan}, {"bbox AP": 4.0, "segm AP": nan}) == 1.0
    assert largest_drop({"bbox AP": nan}, {"bbox AP": nan}) == 0.0


def test_table_of_differences():
    def outputs(*rows):
        boxes, scores, labels = zip(*rows, strict=True)
        return {
            "boxes": np.array(boxes, dtype=np.float32),
            "scores": np.array(scores, dtype=np.float32),
            "labels": np.array(labels),
        }

    one = outputs(([0, 0, 10, 10], 0.9, 0), ([20, 20, 40, 40], 0.4, 1), ([0, 0, 10, 10], 0.1, 1))
    other = outputs(([0, 0, 10, 11], 0.8, 0), ([20, 20, 40, 40], 0.4, 0), ([50, 50, 60, 60], 0.6, 1))
    rows = differences([one], [other])
    assert [(row["score above"], row["detections"], row["found again"], row["added"]) for row in rows] == [
        (0.5, 1, 1, 1),
        (0.3, 2, 1, 2),
        (0.05, 3, 1, 2),
    ]
    assert rows[0]["score difference max"] == pytest.approx(0.1)
    assert rows[0]["box difference max px"] == 1.0
    labels = {"labels": np.array([[[0, 1], [1, 1]]]), "scores": np.full((1, 2, 2), 0.5)}
    changed = {"labels": np.array([[[0, 1], [1, 0]]]), "scores": np.full((1, 2, 2), 0.75)}
    assert differences([labels], [changed]) == [{"images": 1, "same class %": 75.0, "largest score difference": 0.25}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a_openvino", "--max-drop", "1"], "--max-drop is for --int8"),
        (["--output", "a.pt2", "--int8"], "--int8 with --format torch: expected openvino or onnx"),
        (["--output", "a_openvino", "--int8"], "Add --calibrate FOLDER"),
        (["--output", "a_openvino", "--int8", "--calibrate", "empty"], "empty"),
        (["--output", "a_openvino", "--int8", "--calibrate", "IMAGES", "--calibrate-images", "0"], "expected 1 or"),
        (["--output", "a_openvino", "--int8", "--calibrate", "IMAGES", "--max-drop", "-1"], "expected 0 or more"),
    ],
)
def test_mistakes_are_refused_at_once(words, message, mask_rcnn_run, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    words = [shapes / "val" if word == "IMAGES" else word for word in words]
    with pytest.raises((ConfigError, DataError), match=message):
        run_command("export", [mask_rcnn_run, *words])
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


def test_no_usage_statistics_are_sent(monkeypatch, tmp_path):
    import_openvino()
    from openvino_telemetry import main

    monkeypatch.setenv("HOME", str(tmp_path))
    telemetry = object.__new__(main.Telemetry)
    telemetry.init("test", "1", "tid", enable_opt_in_dialog=False)
    assert telemetry.consent is False
    assert list(tmp_path.iterdir()) == []
