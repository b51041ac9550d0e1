"""Whatever happens to a save or to a file, what can be read afterwards is a whole state, or nothing is read."""

from __future__ import annotations

import multiprocessing
import shutil
import time

import pytest
import torch

from pvt_det.engine import checkpoint
from pvt_det.engine.checkpoint import CheckpointStore
from pvt_det.errors import CheckpointError


def state(iteration, size=1000):
    generator = torch.Generator().manual_seed(iteration)
    model = {"weight": torch.randn(size, generator=generator)}
    return {"model": model, "iteration": iteration, "optimizer": {}, "random": [], "seed": 0}


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path)
    for iteration in (9, 19):
        store.save(f"model_{iteration:07d}.pth", state(iteration), iteration)
    return store


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_latest_is_the_last_saved_and_loads_as_it_was(store):
    path = store.latest()
    assert path.name == "model_0000019.pth"
    assert torch.equal(store.load(path)["model"]["weight"], state(19)["model"]["weight"])
    assert not list(store.folder.glob(".*"))


@pytest.mark.parametrize("damage", [flip_bit, lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_damaged_checkpoint_is_refused_and_the_intact_one_named(store, damage):
    damage(store.folder / "model_0000019.pth")
    with pytest.raises(CheckpointError, match=r"model_0000019\.pth.*Delete it to resume from model_0000009\.pth"):
        store.latest()
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(store.folder / "model_0000019.pth")
    (store.folder / "model_0000019.pth").unlink()
    assert store.latest().name == "model_0000009.pth"


@pytest.mark.parametrize("pointer", [None, b"", b"model_00", b"\xff\xfe", b"model_0000029.pth"])
def test_without_a_pointer_the_newest_intact_checkpoint_counts(store, pointer):
    (store.folder / "last_checkpoint").unlink()
    if pointer is not None:
        (store.folder / "last_checkpoint").write_bytes(pointer)
    assert store.latest().name == "model_0000019.pth"
    flip_bit(store.folder / "model_0000019.pth")
    assert store.latest().name == "model_0000009.pth"
    flip_bit(store.folder / "model_0000009.pth")
    with pytest.raises(CheckpointError, match="Every checkpoint"):
        store.latest()


def test_without_a_manifest_the_files_own_sums_count(store):
    (store.folder / "checkpoints.json").write_text("{torn")
    assert store.latest().name == "model_0000019.pth"
    flip_bit(store.folder / "model_0000019.pth")
    with pytest.raises(CheckpointError):
        store.latest()


def test_old_periodic_checkpoints_go_and_others_stay(store):
    store.save("model_best.pth", state(19), 19, is_last=False)
    for iteration in (29, 39, 49):
        store.save(f"model_{iteration:07d}.pth", state(iteration), iteration)
    names = sorted(path.name for path in store.folder.glob("*.pth"))
    assert names == ["model_0000029.pth", "model_0000039.pth", "model_0000049.pth", "model_best.pth"]


def test_empty_folder_has_no_checkpoint(tmp_path):
    assert CheckpointStore(tmp_path).latest() is None


def test_a_full_disk_is_noticed_before_writing(store, monkeypatch):
    usage = shutil.disk_usage(store.folder)._replace(free=2**20)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match="Not enough room"):
        store.save("model_0000029.pth", state(29), 29)
    assert store.latest().name == "model_0000019.pth"


def test_a_disk_that_fills_while_writing_leaves_no_partial_file(store, monkeypatch):
    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        store.save("model_0000019.pth", state(29), 29)
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "checkpoints.json",
        "last_checkpoint",
        "model_0000009.pth",
        "model_0000019.pth",
    ]
    store.verify(store.folder / "model_0000019.pth")


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_a_best_model_being_replaced_is_readable_at_any_moment(store, monkeypatch, moment):
    store.save("model_best.pth", state(9), 9, is_last=False)

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
            store.save("model_best.pth", state(19), 19, is_last=False)
    loaded = store.load(store.folder / "model_best.pth")
    assert loaded["iteration"] == (9 if moment == "before the rename" else 19)
    store.clean()
    assert not list(store.folder.glob("*.tmp")) + list(store.folder.glob(".*.tmp"))


def test_a_file_that_is_no_training_state_is_refused(store):
    torch.save({"model": {"a": torch.zeros(1)}}, store.folder / "model_0000099.pth")
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS, without --resume"):
        store.load(store.folder / "model_0000099.pth")


def save_for_ever(folder, saved_two):
    torch.set_num_threads(1)  # a forked process cannot use its parent's threads
    store = CheckpointStore(folder)
    for iteration in range(100_000):
        name = "model_best.pth" if iteration % 2 else f"model_{iteration:07d}.pth"
        filled = state(0) | {"iteration": iteration, "model": {"weight": torch.full((500_000,), iteration)}}
        store.save(name, filled, iteration, is_last=iteration % 2 == 0)
        if iteration == 1:
            saved_two.set()


def test_kill_during_saves_tears_nothing(tmp_path):
    processes = multiprocessing.get_context("fork")
    for attempt, moment in enumerate(torch.rand(15, generator=torch.Generator().manual_seed(0)).tolist()):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        saved_two = processes.Event()
        saver = processes.Process(target=save_for_ever, args=(folder, saved_two))
        saver.start()
        assert saved_two.wait(60)
        time.sleep(0.1 * moment)
        saver.kill()
        saver.join()
        store = CheckpointStore(folder)
        for path in [store.latest(), *folder.glob("model_*.pth")]:
            loaded = store.load(path)
            assert (loaded["model"]["weight"] == loaded["iteration"]).all()
