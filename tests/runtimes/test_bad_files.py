"""Damaged and hostile exported files are refused with one message, before anything in them is used."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile

import onnx
import pytest
from onnx import TensorProto, helper

from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.inference.predictor import Predictor
from pvt_det.inference.segmentor import Segmentor
from pvt_det.runtimes.backends import BACKENDS
from pvt_det.utils import extras
from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("smallest_variant")


def refused(path, message, predictor=Predictor, error=CheckpointError):
    with pytest.raises(error, match=message) as raised:
        predictor(path)
    assert str(path) in str(raised.value)


@pytest.fixture
def changed(exported, tmp_path):
    """Write a copy of the ONNX file with other metadata and, optionally, another graph."""

    def write(entries, change=lambda model: None):
        model = onnx.load(exported / "mine.onnx")
        metadata = {entry.key: entry.value for entry in model.metadata_props} | entries
        del model.metadata_props[:]
        for key, value in metadata.items():
            if value is not None:
                model.metadata_props.add(key=key, value=value)
        change(model)
        path = tmp_path / "changed.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format_version": None}, "has no metadata of pvt_det"),
        ({"format_version": "2"}, "has format version 2, and this version of pvt_det reads up to 1. Update pvt_det"),
        ({"format_version": "new"}, "its format version is 'new'"),
        ({"config": None}, "its metadata has no config"),
        ({"config": "MODEL: ["}, "the config in .* line 1"),
        ({"config": "MODEL: !!python/object/apply:os.system [ls]"}, "tag .* is refused"),
        ({"config": "MODEL: {NOPE: 1}"}, r"unknown key MODEL\.NOPE"),
        ({"config": "_BASE_: /etc/hosts"}, "unknown key _BASE_"),
        ({"config": "TEST: {DETECTIONS_PER_IMAGE: -1}"}, r"TEST\.DETECTIONS_PER_IMAGE = -1: expected"),
        ({"outputs": "boxes"}, "outputs in its metadata is 'boxes'"),
        ({"outputs": '["boxes", 1]'}, "outputs in its metadata is"),
        ({"outputs": '["boxes", "scores", "labels", "images", "nope"]'}, "it has no output nope"),
        ({"score_threshold": "NaN"}, "score_threshold in its metadata is 'NaN'"),
        ({"max_detections": "-5"}, "max_detections in its metadata is '-5'"),
        ({"parameters": "1e3"}, "parameters in its metadata is '1e3'"),
        ({"task": "pose"}, "its task is 'pose', expected detection"),
    ],
)
def test_metadata(changed, entries, message):
    refused(changed(entries), message)


def test_classifier(changed):
    path = changed({"task": "classification"})
    refused(path, r"is a classifier\. Expected a detector or segmentor", error=ConfigError)


@pytest.mark.parametrize("kept", [0, 1000, -2000])
def test_truncated_onnx(exported, tmp_path, kept):
    path = tmp_path / "cut.onnx"
    path.write_bytes((exported / "mine.onnx").read_bytes()[:kept])
    refused(path, "is damaged or not an exported model|has no metadata of pvt_det")


def _outside(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/hosts")


def _outside_in_a_subgraph(model):
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph([helper.make_node("Constant", [], ["x"], value=tensor)], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize("change", [_outside, _outside_in_a_subgraph])
def test_weights_in_other_files_are_not_opened(changed, change, monkeypatch):
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("the runtime saw the file"))
    refused(changed({}, change), "keeps weights in other files, which is refused")


def _unknown_operator(model):
    model.graph.node[0].op_type = "Nope"


def test_unsupported_operator(changed):
    refused(changed({}, _unknown_operator), r"^ONNX Runtime \S+ cannot run .*Nope.* Update the runtime")


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("mine.onnx", "onnxruntime", r"^ONNX Runtime needs onnxruntime, which is missing\. .*'pvt_det\[export\]'"),
        ("mine_openvino", "openvino", r"^OpenVINO needs openvino, which is missing\. .*'pvt_det\[openvino\]'"),
    ],
)
def test_missing_runtime(exported, monkeypatch, name, missing, message):
    monkeypatch.setattr(extras, "find_spec", lambda module: None if module == missing else object())
    with pytest.raises(ConfigError, match=message):
        Predictor(exported / name)


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported / "mine_openvino", tmp_path / "ov")


@pytest.mark.parametrize("name", ["model.bin", "model.xml"])
def test_openvino_files_of_another_model(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    refused(folder, f"{name} is not the file that metadata.json describes")
    (folder / name).unlink()
    # Without the graph it is any folder.
    with pytest.raises((CheckpointError, ConfigError), match=rf"{name} cannot be read|contains no config\.yaml"):
        Predictor(folder)


def test_damaged_openvino_graph(folder):
    (folder / "model.xml").write_text("<net><layers>")
    BACKENDS["openvino"].write_metadata(folder, BACKENDS["openvino"].read_metadata(folder / "model.xml"))
    refused(folder, r"^OpenVINO \S+ cannot run")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not valid JSON"), ("[]", "not a JSON object of strings"), ('{"a": 1}', "object of strings")],
)
def test_openvino_metadata(folder, content, message):
    (folder / "metadata.json").write_text(content)
    refused(folder, message)
    (folder / "metadata.json").unlink()
    refused(folder, "has no metadata of pvt_det")


class _Attack:
    def __reduce__(self):
        return pytest.fail, ("code from the file ran",)


def _program_with(key, value):
    def change(entries):
        program = json.loads(entries["models/model.json"])
        stack = [program]
        while stack:
            top = stack.pop()
            if isinstance(top, dict) and isinstance(top.get(key), str):
                top[key] = value
                break
            stack += top.values() if isinstance(top, dict) else top if isinstance(top, list) else []
        entries["models/model.json"] = json.dumps(program).encode()

    return change


def _pickled_weights(entries):
    name = "data/weights/model_weights_config.json"
    table = json.loads(entries[name])
    next(iter(table["config"].values()))["use_pickle"] = True
    entries[name] = json.dumps(table).encode()


def _set(name, content):
    return lambda entries: entries.__setitem__(name, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_program_with("target", "torch.hub.load"), r"an operator 'torch\.hub\.load'"),
        (_program_with("target", "torch.ops.aten.from_file.default"), "an operator"),
        (_program_with("target", "torch._C._import.x"), "an operator"),
        (_program_with("expr_str", "__import__('os').system('ls')"), "an expression"),
        (_program_with("expr_str", "Symbol('s0').func.__class__"), "an expression"),
        (_program_with("expr_str", "exec('s0')"), "an expression"),
        (_pickled_weights, "pickled weights"),
        (_set("data/sample_inputs/model.pt", pickle.dumps(_Attack())), "a pickle with more than tensors"),
        (_set("data/constants/custom_obj_0", pickle.dumps(_Attack())), "an entry 'data/constants/custom_obj_0'"),
        (_set("data/weights/model.pt", pickle.dumps(_Attack())), "an entry"),
        (_set("models/other.json", b"{}"), "an entry"),
        (_set("data/aotinductor/model/x.so", b""), "contains machine code, compiled by AOTInductor"),
        (_set("extra/pvt_det.json", b"{"), "its metadata is not valid JSON"),
        (_set("models/model.json", b"{"), "is damaged or not an exported model"),
    ],
)
def test_programs_run_no_code(exported_program, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(
        "torch.export.pt2_archive._package.load_pt2", lambda *_: pytest.fail("PyTorch loaded the program")
    )
    with zipfile.ZipFile(exported_program) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    path = tmp_path / "attack.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"mine/{name}", content)
    refused(path, message, Segmentor)


def test_other_files(tmp_path):
    text = tmp_path / "text.pt2"
    text.write_text("not an archive")
    refused(text, "is damaged or not an exported model")
    refused(tmp_path / "nowhere.onnx", r"^\S+nowhere\.onnx does not exist", error=ConfigError)
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    text.write_bytes(empty.getvalue())
    refused(text, "is damaged or not an exported model")


def test_commands_refuse_early(exported, changed, shapes, tmp_path):
    """Nothing is written, and the exit code is that of a broken file."""
    broken = changed({"format_version": "99"})
    data = ["--val-json", shapes / "annotations/instances_val.json", "--val-images", shapes / "val"]
    for words in (
        ("predict", [shapes / "val", "--config-file", broken, "--output", tmp_path / "out"]),
        ("eval", [broken, *data, "--output", tmp_path / "out"]),
    ):
        with pytest.raises(CheckpointError, match="format version 99"):
            run_command(*words)
    assert not (tmp_path / "out").exists()
    assert CheckpointError.exit_code == 4
    with pytest.raises(ConfigError, match="--allow-partial has no effect"):
        run_command("eval", [exported / "mine.onnx", *data, "--output", tmp_path / "out", "--allow-partial", "a.*"])
