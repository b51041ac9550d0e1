"""After any interrupted save or damage to a file, a checkpoint is either complete or refused."""

from __future__ import annotations

import os
import random
import shutil

import numpy as np
import pytest
import torch

from pvt_det import checkpoint
from pvt_det.checkpoint import CheckpointStore
from pvt_det.errors import CheckpointError
from pvt_det.models import create_model
from pvt_det.weights import save_checkpoint
from pvt_det.weights.reader import read_tensors
from tests.drills.fuzz import run_fuzz
from tests.drills.kills import run_kills
from tests.faults.conftest import in_child
from tests.weights.files import TENSORS, whole_files


def state(iteration: int, size: int = 1000) -> dict:
    generator = torch.Generator().manual_seed(iteration)
    model = {"weight": torch.randn(size, generator=generator)}
    return {"model": model, "iteration": iteration, "optimizer": {}, "random": [], "seed": 0}


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    store = CheckpointStore(folder, keep=2)
    for iteration in (9, 19):
        store.save(f"model_{iteration:07d}.pth", state(iteration), iteration)
    return store


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


# --- damaged and foreign files ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", [flip_bit, cut])
def test_F34_damaged_checkpoint_is_refused_and_the_intact_one_suggested(store, command, damage):
    damage(store.folder / "model_0000019.pth")
    ending = command("--resume")
    assert ending.code == 4
    assert "model_0000019.pth" in ending.error
    assert "Delete it to resume from model_0000009.pth." in ending.error
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(store.folder / "model_0000019.pth")
    (store.folder / "model_0000019.pth").unlink()
    assert store.latest().name == "model_0000009.pth"


@pytest.mark.parametrize(("key", "value"), [("iteration", "19"), ("optimizer", []), ("random", 5), ("classes", {})])
def test_F34_training_state_with_wrong_types(store, key, value):
    path = store.save("model_0000029.pth", state(29) | {key: value}, 29)
    with pytest.raises(
        CheckpointError, match=rf"model_0000029\.pth is not a valid training state: '{key}' has the type"
    ):
        store.load(path)


def test_F34_negative_iteration(store):
    path = store.save("model_0000029.pth", state(29) | {"iteration": -2}, 29)
    with pytest.raises(CheckpointError, match=r"model_0000029\.pth is not a valid training state: 'iteration' is -2"):
        store.load(path)


def test_F34_weights_truncated_anywhere(tmp_path):
    for path in whole_files(tmp_path):
        content = path.read_bytes()
        for length in {0, 1, 7, 8, 9, 20, len(content) - 1, *range(0, len(content), 1 + len(content) // 40)}:
            path.write_bytes(content[:length])
            with pytest.raises(CheckpointError):
                read_tensors(path)


def test_F34_weights_with_one_bit_flipped(tmp_path):
    """The checksums of both formats that this package writes detect a flipped bit in the values."""
    generator = random.Random(0)
    for path in whole_files(tmp_path)[0::2]:
        content = path.read_bytes()
        numbers = content.find(TENSORS["a.weight"].numpy().tobytes())
        for _ in range(60):
            at, flipped = generator.randrange(numbers, numbers + 24), bytearray(content)
            flipped[at] ^= 1 << generator.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError, match="damaged"):
                read_tensors(path)


@pytest.fixture(scope="module")
def trunk():
    return create_model("pvt_v2_b0", num_classes=0).state_dict()


@pytest.mark.parametrize("fault", ["no key matches", "wrong prefix", "other architecture"])
def test_F35_weights_of_a_different_model(refused, trunk, tmp_path, fault):
    content, reason = {
        "no key matches": ({"encoder.0.weight": torch.zeros(2)}, "match no known layout"),
        "wrong prefix": ({f"net.{name}": value for name, value in trunk.items()}, "match no known layout"),
        "other architecture": (
            create_model("pvt_v2_b1", num_classes=0).state_dict(),
            "this file is a pvt_v2_b1, the model is pvt_v2_b0",
        ),
    }[fault]
    save_checkpoint(tmp_path / "x.pth", content)
    refused(4, str(tmp_path / "x.pth"), reason, MODEL__WEIGHTS=tmp_path / "x.pth")


def test_F35_weights_that_are_not_a_regular_file(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("PVT_DET_CACHE", str(tmp_path / "cache"))
    os.mkfifo(tmp_path / "pipe.pth")
    signed = f"https://127.0.0.1:9/{'x' * 300}.pth"
    for source, reason in (
        (tmp_path / "pipe.pth", "is not a regular file"),
        (tmp_path, "is a folder"),
        ("x" * 300 + ".pth", "File name too long"),
        (f"https://{'x' * 70}/a.pth", "cannot be downloaded"),  # not a valid host name
    ):
        refused(4, str(source), reason, MODEL__WEIGHTS=source)
    evaluation = {"val": True, "MODEL__RETINANET__NUM_CLASSES": 4, "MODEL__WEIGHTS": signed}
    for _ in range(2):  # the second time, its folder already exists
        refused(4, "File name too long", options=("--eval-only",), **evaluation)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "a tensor of 4,000,000,000,000 bytes, more than the file holds"),
        (torch.zeros(3, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(3).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (torch.zeros(3).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(3, device="meta"), "on meta"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
        (np.zeros(3, np.uint16), "an array of uint16"),
        (torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "torch.qint8"),
    ],
    ids=["repeated", "complex", "float8", "sparse", "meta", "nested", "16-bit array", "quantized"],
)
def test_F35_tensors_that_cannot_be_weights(tmp_path, tensor, reason):
    torch.save({"model": {**TENSORS, "head.bias": tensor}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: head\.bias is .*{reason}"):
        read_tensors(tmp_path / "x.pth")


def test_F35_names_that_hide_or_replace_others(tmp_path):
    for names, reason in ((["a\x1b[2K\nb"], r"'a\\x1b\[2K\\nb'"), ([1, "1"], "two entries are named 1")):
        torch.save({**TENSORS, **{name: torch.zeros(3) for name in names}}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=rf"x\.pth: .*{reason}"):
            read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("length", [0x3C20, 0x4B50], ids=["web page", "zip"])
def test_F35_header_length_that_looks_like_a_different_format(tmp_path, length):
    """These 8 bytes start with " <" or "PK"."""
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust(length)
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert read_tensors(tmp_path / "x.safetensors")["a"].tolist() == [0]


def test_F35_broken_file_does_not_suggest_unsafe_loading(tmp_path):
    """PyTorch's own message suggests weights_only=False."""
    torch.save(TENSORS, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    at = content.index(b"ctorch._utils")
    (tmp_path / "x.pth").write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    with pytest.raises(CheckpointError, match=r"broken or cut short \(UnpicklingError: Unsupported operand 255\)"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda weight: weight.int(), 4, "is int32, expected float32"),
        (lambda weight: weight.sum(), 4, r"is (), expected (32, 3, 7, 7)"),
        (lambda weight: weight.double() * 1e300, 5, "NaN or infinity in 1 tensor"),
    ],
    ids=["integers", "one number", "too large for float32"],
)
def test_F35_weights_with_wrong_dtype_shape_or_range(refused, trunk, tmp_path, change, code, reason):
    name = "patch_embed1.proj.weight"
    save_checkpoint(tmp_path / "x.pth", {**trunk, name: change(trunk[name])})
    refused(code, str(tmp_path / "x.pth"), name, reason, MODEL__WEIGHTS=tmp_path / "x.pth")


def test_F35_header_that_claims_gigabytes(refused, tmp_path):
    path = tmp_path / "x.safetensors"
    tensor = b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}'
    for content in ((2**40).to_bytes(8, "little") + b"{", len(tensor).to_bytes(8, "little") + tensor + bytes(4)):
        path.write_bytes(content)
        refused(4, str(path), "broken or cut short", MODEL__WEIGHTS=path)


def test_F35_partial_weights_load_only_if_allowed(refused, command, trunk, tmp_path):
    partial = {name: value for name, value in trunk.items() if not name.startswith("block4")}
    save_checkpoint(tmp_path / "x.pth", partial)
    words = {"MODEL__WEIGHTS": tmp_path / "x.pth", "SOLVER__MAX_ITER": 1, "SOLVER__STEPS": []}
    refused(4, "missing", "block4", "--allow-partial", **words)
    assert command("--allow-partial", "*block4*", **words).code == 0


# --- interrupted saves -----------------------------------------------------------------------------------------------
def test_F37_kill_during_saves_leaves_intact_files(tmp_path):
    outcome = run_kills(tmp_path, 12)
    assert outcome.tried == 12
    assert not outcome.failures, outcome


@pytest.mark.parametrize("pointer", [None, b"", b"model_00", b"\xff\xfe", b"model_0000029.pth"])
def test_F38_without_a_pointer_the_newest_intact_checkpoint_is_used(store, pointer):
    (store.folder / "last_checkpoint").unlink()
    if pointer is not None:
        (store.folder / "last_checkpoint").write_bytes(pointer)
    assert store.latest().name == "model_0000019.pth"
    flip_bit(store.folder / "model_0000019.pth")
    assert store.latest().name == "model_0000009.pth"
    flip_bit(store.folder / "model_0000009.pth")
    with pytest.raises(CheckpointError, match=r"Every checkpoint .*--output"):
        store.latest()


MANIFESTS = ["{torn", "[]", '{"model_0000019.pth": {"sha256": []}}', '{"a": {"sha256": [], "iteration": "x"}}']


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_F38_without_a_manifest_the_checksums_in_the_files_are_used(store, manifest):
    (store.folder / "checkpoints.json").write_text(manifest)
    assert store.latest().name == "model_0000019.pth"
    flip_bit(store.folder / "model_0000019.pth")
    with pytest.raises(CheckpointError):
        store.latest()


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_F39_best_model_is_always_readable_while_it_is_replaced(store, monkeypatch, moment):
    store.save_weights("model_best.pth", state(9)["model"], 9)

    class Killed(BaseException):
        pass

    replace = checkpoint.Path.replace

    def killed_replace(self, target):
        if target.name == "model_best.pth" and moment == "before the rename":
            raise Killed
        replace(self, target)
        if target.name == "model_best.pth":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path, "replace", killed_replace)
        with pytest.raises(Killed):
            store.save_weights("model_best.pth", state(19)["model"], 19)
    store.verify(store.folder / "model_best.pth")
    iteration = 9 if moment == "before the rename" else 19
    weights = read_tensors(store.folder / "model_best.pth")
    assert torch.equal(weights["weight"], state(iteration)["model"]["weight"])
    assert store.latest().name == "model_0000019.pth"
    store.clean()
    assert not list(store.folder.glob(".*.tmp"))


# --- full disks ------------------------------------------------------------------------------------------------------
def test_F43_disk_space_is_checked_before_the_first_step(refused, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage)
    refused(4, "Not enough disk space in", "MiB are free", "--output")


def test_F43_disk_that_fills_during_a_save_leaves_no_partial_file(store):
    """If the kernel refuses the last bytes, the new file is removed and the old one is intact."""
    before = names(store)

    def save() -> str:
        with pytest.raises(CheckpointError) as error:
            store.save("model_0000019.pth", state(29, size=100_000), 29)
        return str(error.value)

    message, _ = in_child(save, file_size=100_000)
    assert "Cannot save" in message
    assert "model_0000019.pth" in message
    assert "--resume" in message
    assert names(store) == before
    assert store.load(store.latest())["iteration"] == 19


def test_F43_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    refused(2, str(tmp_path / "file"), "Choose another output folder", output=tmp_path / "file/run")


def test_mutated_files_are_refused_or_read_without_silent_changes(tmp_path):
    outcome = run_fuzz(tmp_path, 60, seed=1)
    assert outcome.tried == 180
    assert not outcome.failures, outcome
