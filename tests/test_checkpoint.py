"""Saving, finding and loading checkpoints."""

from __future__ import annotations

import pytest
import torch

from pvt_det.checkpoint import CheckpointStore
from pvt_det.errors import CheckpointError


def state(iteration, size=1000):
    generator = torch.Generator().manual_seed(iteration)
    model = {"weight": torch.randn(size, generator=generator)}
    return {"model": model, "iteration": iteration, "optimizer": {}, "random": [], "seed": 0}


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for iteration in (9, 19):
        store.save(f"model_{iteration:07d}.pth", state(iteration), iteration)
    return store


def test_latest_is_last_saved_and_loads_unchanged(store):
    path = store.latest()
    assert path.name == "model_0000019.pth"
    assert torch.equal(store.load(path)["model"]["weight"], state(19)["model"]["weight"])
    assert not list(store.folder.glob(".*"))


@pytest.mark.parametrize("listed", [True, False])
def test_damage_is_reported_by_the_checksum_that_found_it(store, listed):
    path = store.folder / "model_0000019.pth"
    content = bytearray(path.read_bytes())
    content[content.index(state(19)["model"]["weight"].numpy().tobytes()[:16])] ^= 1
    path.write_bytes(content)
    if not listed:
        (store.folder / "checkpoints.json").unlink()
    with pytest.raises(
        CheckpointError, match="SHA-256 mismatch" if listed else r"checksum \(CRC-32\) of its entry .* is wrong"
    ):
        store.verify(path)


def test_only_old_periodic_checkpoints_are_deleted(store):
    store.save_weights("model_best.pth", state(19)["model"], 19)
    for iteration in (29, 39, 49):
        store.save(f"model_{iteration:07d}.pth", state(iteration), iteration)
    names = sorted(path.name for path in store.folder.glob("*.pth"))
    assert names == ["model_0000029.pth", "model_0000039.pth", "model_0000049.pth", "model_best.pth"]
    CheckpointStore(store.folder).save("model_0000059.pth", state(59), 59)
    assert sorted(path.name for path in store.folder.glob("*.pth")) == ["model_0000059.pth", "model_best.pth"]


def test_checkpoint_to_resume_from_is_kept_even_if_it_is_not_the_newest(store):
    """A run may be resumed from an older checkpoint, by changing `last_checkpoint`."""
    one = CheckpointStore(store.folder)
    one.save("model_0000014.pth", state(14), 14)
    assert one.latest().name == "model_0000014.pth"
    assert [path.name for path in store.folder.glob("*.pth")] == ["model_0000014.pth"]


@pytest.mark.parametrize("listed", [True, False])
def test_weights_are_not_resumed_from(store, listed):
    store.save_weights("model_final.pth", state(19)["model"], 19)
    for name in ("last_checkpoint", *([] if listed else ["checkpoints.json"])):
        (store.folder / name).unlink()
    assert store.latest().name == "model_0000019.pth"
    for path in store.folder.glob("model_0*.pth"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"only weights: model_final\.pth\..*MODEL\.WEIGHTS .*model_final\.pth"):
        store.latest()


def test_weights_are_a_dictionary_without_training_state(store):
    path = store.save_weights("model_best.pth", state(19)["model"], 19)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "iteration", "format"}
    assert content["iteration"] == 19
    assert torch.equal(content["model"]["weight"], state(19)["model"]["weight"])
    assert store.identify(path) == (store.saved_digest("model_best.pth"), 20)
    assert (store.folder / "last_checkpoint").read_text() == "model_0000019.pth"


def test_empty_folder_has_no_checkpoint(tmp_path):
    assert CheckpointStore(tmp_path).latest() is None


def test_file_without_training_state_is_rejected(store):
    torch.save({"model": {"a": torch.zeros(1)}}, store.folder / "model_0000099.pth")
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS, without --resume"):
        store.load(store.folder / "model_0000099.pth")
