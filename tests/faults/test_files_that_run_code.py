"""No code in a user's files is run, and no files outside the data folder are read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from pvt_det.errors import CheckpointError
from pvt_det.weights.reader import read_tensors
from tests.faults.conftest import in_child
from tests.weights.files import ARRAYS, TENSORS, write_pickle

ROOT = Path(__file__).parents[2]
YAML_CALL = "!!python/object/apply:os.system"


@pytest.mark.parametrize("where", ["direct", "base", "key", "python"])
def test_F01_yaml_that_runs_code(refused, tmp_path, where):
    ran = tmp_path / "ran"
    call = f'{YAML_CALL} ["touch {ran}"]'
    (tmp_path / "direct.yaml").write_text(f"OUTPUT_DIR: {call}\n")
    (tmp_path / "base.yaml").write_text("_BASE_: direct.yaml\n")
    (tmp_path / "key.yaml").write_text(f"? {call}\n: 1\n")
    (tmp_path / "python.py").write_text(f"import os; os.system('touch {ran}'); cfg = {{}}\n")
    path = tmp_path / ("python.py" if where == "python" else f"{where}.yaml")
    reason = "Python configs are not run" if where == "python" else "python/object/apply:os.system"
    named = tmp_path / "direct.yaml" if where == "base" else path
    refused(2, reason, str(named), options=("--config-file", path))
    assert not ran.exists()


def test_F02_shipped_yaml_is_plain():
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(files) > 50
    for path in files:
        assert "!!" not in path.read_text()
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


class Hostile:
    """An object that runs a command when it is unpickled."""

    def __init__(self, marker: Path, method: str) -> None:
        self.marker, self.method = marker, method

    def __reduce__(self) -> tuple:
        if self.method == "system":
            return os.system, (f"touch {self.marker}",)
        if self.method == "eval":
            return eval, (f"open({str(self.marker)!r}, 'w')",)
        return Path.touch, (self.marker,)


@pytest.fixture(params=["system", "eval", "method"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Hostile:
    """An object whose command verifiably runs if nothing prevents it."""
    found = Hostile(tmp_path / "it_ran", request.param)
    pickle.loads(pickle.dumps(found))
    assert found.marker.exists()
    found.marker.unlink()
    return found


def assert_refused(path: Path, marker: Path, reason: str = "refused because it holds code or objects") -> None:
    with pytest.raises(CheckpointError, match=reason) as error:
        read_tensors(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "x.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_F03_hostile_pickle(tmp_path, hostile, name, protocol):
    path = write_pickle(tmp_path / name, {"model": {**ARRAYS, "z": hostile}}, protocol)
    text_pickle = protocol == 0 and name != "x.pkl"
    assert_refused(path, hostile.marker, *["not a checkpoint"] if text_pickle else [])


def test_F03_array_of_hostile_objects(tmp_path, hostile):
    path = write_pickle(tmp_path / "x.pkl", {"a": np.array([hostile], dtype=object)})
    assert_refused(path, hostile.marker)


def test_F03_pickle_that_claims_gigabytes(tmp_path):
    """The pickles claim 3.6 billion objects, or a byte string of 4 GB that is missing."""
    content = pickle.dumps(ARRAYS, protocol=2)
    claims = (content[:-1] + b"r" + b"\x00\x00\x00\xd8" + b".", b"\x80\x05\x96" + (2**32).to_bytes(8, "little") + b"x.")
    for number, claim in enumerate(claims):
        (tmp_path / f"{number}.pkl").write_bytes(claim)
        (message, growth) = in_child(lambda path=tmp_path / f"{number}.pkl": _refusal(path))
        assert "broken or cut short" in message
        assert growth < 100 * 2**20


class Hungry:
    """An object whose unpickling calls an allowed function with a size of gigabytes."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("where", ["array", "bytearray", "tensor"])
def test_F03_call_that_requests_gigabytes(tmp_path, where):
    path = tmp_path / "x.pth"
    if where == "array":
        write_pickle(path, {**ARRAYS, "a": Hungry(np.ndarray, ((2**31,),))})
    else:
        call = {"bytearray": (bytearray, (2**33,)), "tensor": (torch.FloatTensor, (2**31,))}[where]
        torch.save({**TENSORS, "a": Hungry(*call)}, path)
    message, growth = in_child(lambda: _refusal(path))
    assert ("bytearray" if where == "bytearray" else "a is a tensor of") in message
    assert growth < 100 * 2**20


def _refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_tensors(path)
    return str(error.value)


def test_F03_hostile_weights_or_proposals_on_the_command_line(refused, tmp_path):
    hostile = Hostile(tmp_path / "it_ran", "system")
    path = write_pickle(tmp_path / "x.pkl", {"model": {**ARRAYS, "z": hostile}})
    refused(4, str(path), "refused", MODEL__WEIGHTS=path)
    # Detectron2 would unpickle a proposal file.
    proposals = {"MODEL__LOAD_PROPOSALS": True, "DATASETS__PROPOSAL_FILES_TRAIN": [str(path)]}
    refused(2, "LOAD_PROPOSALS", output=tmp_path / "other", **proposals)
    assert not hostile.marker.exists()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["instead", "inside", "beside"])
def test_F04_hostile_torch_file(tmp_path, hostile, place, zipped, force, monkeypatch):
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = {"instead": hostile, "inside": {**TENSORS, "z": hostile}, "beside": {"model": TENSORS, "z": hostile}}
    torch.save(content[place], tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_refused(tmp_path / "x.pth", hostile.marker)


def test_F04_hostile_weights_on_the_command_line(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    hostile = Hostile(tmp_path / "it_ran", "system")
    torch.save({"model": TENSORS, "z": hostile}, tmp_path / "x.pth")
    refused(4, str(tmp_path / "x.pth"), "refused", MODEL__WEIGHTS=tmp_path / "x.pth")
    assert not hostile.marker.exists()


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hostname", "a/../../b.jpg", "C:\\secret.jpg"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_F05_file_name_outside_the_folder(refused_set, tiny_set, name, on_error):
    tiny_set.content["images"][0]["file_name"] = name
    parts = ("outside the image folder", "image 1", "DATASETS.ALLOW_OUTSIDE True")
    for check in ("fast", "off"):
        refused_set(*parts, DATASETS__ON_ERROR=on_error, DATASETS__CHECK=check)


def test_F05_flag_allows_files_outside_the_folder(refused_set, tiny_set, command, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "beside.jpg")
    tiny_set.content["images"][0]["file_name"] = "../beside.jpg"
    refused_set("ALLOW_OUTSIDE")
    ending = command(**tiny_set.words(), DATASETS__ALLOW_OUTSIDE=True, SOLVER__MAX_ITER=1, SOLVER__STEPS=[])
    assert ending.code == 0


def test_F06_weights_over_plain_http_without_a_hash(refused):
    url = "http://127.0.0.1:9/model.pth"
    refused(4, url, "plain http can be tampered with", MODEL__WEIGHTS=url)
