"""`load_pretrained` sets every tensor or names it in the report. On an error nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pvt_det.errors import CheckpointError, NumericError
from pvt_det.layers.position import resize_position
from pvt_det.models import create_model
from pvt_det.weights import load_pretrained, read_checkpoint, rename, save_checkpoint


class Fpn(nn.Module):
    """Stand-in for a detector: a trunk at Detectron2's place, an FPN layer and a head."""

    def __init__(self, trunk: nn.Module, classes: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = trunk
        self.backbone.fpn_lateral2 = nn.Conv2d(64, 8, 1)
        self.head = nn.Module()
        self.head.cls_score = nn.Conv2d(8, 9 * classes, 3)
        self.register_buffer("loss_normalizer", torch.tensor(100.0))


def fresh(model: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for t in model.state_dict().values():
        t.copy_(torch.randn(t.shape, generator=generator))
    return model


def tiny(**arguments: object) -> nn.Module:
    return create_model("pvt_tiny", **arguments)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Return the file and tensors of a PVT-Tiny classifier in the published layout."""
    state = fresh(tiny()).state_dict()
    path = tmp_path_factory.mktemp("weights") / "pvt_tiny.pth"
    save_checkpoint(path, state)
    return path, state


def test_classifier(classifier: tuple, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pvt_det")
    path, state = classifier
    model = tiny()
    report = load_pretrained(model, path)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert str(report) == f"{path} (published PVT): 161 tensors: 161 loaded"
    assert str(report) in caplog.text


def test_trunk_drops_classifier_tensors(classifier: tuple) -> None:
    path, state = classifier
    model = tiny(num_classes=0)
    report = load_pretrained(model, path)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert str(report).endswith("161 tensors: 156 loaded, 5 dropped: cls_token, norm, head")


def test_detector_loads_classifier_into_its_trunk(classifier: tuple) -> None:
    path, state = classifier
    model = fresh(Fpn(tiny(num_classes=0)), seed=2)
    before = snapshot(model)
    report = load_pretrained(model, path)
    for k, v in model.state_dict().items():
        inside = k.startswith("backbone.bottom_up.")
        assert torch.equal(v, state[k.removeprefix("backbone.bottom_up.")] if inside else before[k]), k
    assert list(report.new) == ["fpn", "head"]
    assert list(report.defaults) == ["loss_normalizer"]
    assert len(report.loaded) == 156
    with pytest.raises(CheckpointError, match=r"leaves 4 tensors of the model untrained: fpn, head\."):
        report.require_whole()


def test_trunk_loads_its_part_of_a_detector(tmp_path: Path) -> None:
    detector = fresh(Fpn(tiny(num_classes=0)))
    save_checkpoint(tmp_path / "d.pth", {"model": detector.state_dict()})
    model = tiny(num_classes=0)
    report = load_pretrained(model, tmp_path / "d.pth")
    assert all(torch.equal(v, detector.backbone.bottom_up.state_dict()[k]) for k, v in model.state_dict().items())
    assert list(report.dropped) == ["the rest of the detector"]


def test_detector_of_this_package(tmp_path: Path) -> None:
    detector = fresh(Fpn(tiny(num_classes=0)))
    save_checkpoint(tmp_path / "d.pth", {"model": detector.state_dict()})
    model = Fpn(tiny(num_classes=0))
    report = load_pretrained(model, tmp_path / "d.pth")
    assert all(torch.equal(v, detector.state_dict()[k]) for k, v in model.state_dict().items())
    assert (report.new, report.dropped, report.defaults) == ({}, {}, {})


def test_detector_file_without_loss_normalizer_and_with_anchors(tmp_path: Path) -> None:
    state = fresh(Fpn(tiny(num_classes=0))).state_dict()
    del state["loss_normalizer"]
    extra = {"anchor_generator.cell_anchors.0": torch.zeros(9, 4), "pixel_mean": torch.zeros(3, 1, 1)}
    save_checkpoint(tmp_path / "d.pth", {"model": state | extra})
    model = Fpn(tiny(num_classes=0))
    report = load_pretrained(model, tmp_path / "d.pth")
    assert model.loss_normalizer == 100
    assert list(report.defaults) == ["loss_normalizer"]
    report.require_whole()
    assert sorted(report.dropped) == ["anchors", "pixel statistics"]
    assert not report.new


def test_head_for_different_classes_keeps_initial_values_and_is_reported(classifier: tuple, tmp_path: Path) -> None:
    path, _ = classifier
    model = fresh(tiny(num_classes=10), seed=3)
    before = snapshot(model)
    report = load_pretrained(model, path)
    assert torch.equal(model.head.weight, before["head.weight"])
    assert report.new == {"head (10 outputs, 1000 in the file)": ["head.weight", "head.bias"]}
    assert len(report.loaded) == 159

    save_checkpoint(tmp_path / "d.pth", {"model": fresh(Fpn(tiny(num_classes=0), classes=80)).state_dict()})
    report = load_pretrained(Fpn(tiny(num_classes=0), classes=4), tmp_path / "d.pth")
    assert report.new == {"cls_score (36 outputs, 720 in the file)": ["head.cls_score.weight", "head.cls_score.bias"]}


def test_position_embeddings_are_resized(classifier: tuple) -> None:
    path, state = classifier
    model = tiny(img_size=(256, 320))
    report = load_pretrained(model, path)
    for i, (old, new) in enumerate(zip((56, 28, 14), ((64, 80), (32, 40), (16, 20)), strict=True), start=1):
        wanted = resize_position(state[f"pos_embed{i}"], (old, old), new)
        assert torch.equal(model.state_dict()[f"pos_embed{i}"], wanted)
    assert torch.equal(model.pos_embed4[:, :1], state["pos_embed4"][:, :1])
    assert torch.equal(model.pos_embed4[:, 1:], resize_position(state["pos_embed4"][:, 1:], (7, 7), (8, 10)))
    assert report.notes[3] == "pos_embed4: resized, 50 to 81 positions"
    assert "pos_embed1: resized, 3136 to 5120 positions" in str(report)


def test_missing_class_slot_is_added_only_if_unused(classifier: tuple, tmp_path: Path) -> None:
    _, state = classifier
    save_checkpoint(tmp_path / "x.pth", state | {"pos_embed4": state["pos_embed4"][:, 1:]})
    model = tiny(num_classes=0)
    report = load_pretrained(model, tmp_path / "x.pth")
    assert torch.equal(model.pos_embed4[:, 1:], state["pos_embed4"][:, 1:])
    assert not model.pos_embed4[:, 0].any()
    assert "unused class slot added" in str(report)
    message = r"1 with a different shape: pos_embed4 is \(1, 49, 512\), expected \(1, 50"
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tiny(), tmp_path / "x.pth")


def test_missing_unexpected_and_misshapen_tensors_are_refused(tmp_path: Path) -> None:
    state = fresh(create_model("pvt_v2_b0", num_classes=0)).state_dict()
    model = create_model("pvt_v2_b0", num_classes=0)
    for key in [k for k in state if not k.startswith("patch_embed1.proj.weight")][::25]:
        save_checkpoint(tmp_path / "x.pth", {k: v for k, v in state.items() if k != key})
        with pytest.raises(CheckpointError, match=f"1 missing: {key}"):
            load_pretrained(model, tmp_path / "x.pth")
    save_checkpoint(tmp_path / "x.pth", state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 unexpected: extra\.weight"):
        load_pretrained(model, tmp_path / "x.pth")
    save_checkpoint(tmp_path / "x.pth", state | {"norm1.weight": torch.zeros(5)})
    with pytest.raises(CheckpointError, match=r"1 with a different shape: norm1\.weight is \(5,\), expected \(32,\)"):
        load_pretrained(model, tmp_path / "x.pth")


def test_classifier_requires_its_head(classifier: tuple, tmp_path: Path) -> None:
    _, state = classifier
    save_checkpoint(tmp_path / "x.pth", {k: v for k, v in state.items() if not k.startswith(("head", "norm", "cls"))})
    with pytest.raises(CheckpointError, match=r"5 missing: cls_token, norm\.weight, norm\.bias, head"):
        load_pretrained(tiny(), tmp_path / "x.pth")


def test_allow_partial_covers_only_matching_tensors(classifier: tuple, tmp_path: Path) -> None:
    _, state = classifier
    changed = {k: v for k, v in state.items() if not k.startswith("block1.0")} | {
        "extra.a": torch.zeros(1),
        "block2.0.norm1.weight": torch.zeros(3),
    }
    save_checkpoint(tmp_path / "x.pth", changed)
    model = fresh(tiny(), seed=4)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"1 unexpected: extra\.a; 1 with a different shape"):
        load_pretrained(model, tmp_path / "x.pth", allow_partial=["block1.0.*"])
    patterns = ["block1.0.*", "extra.*", "block2.0.norm1.weight"]
    report = load_pretrained(model, tmp_path / "x.pth", allow_partial=patterns)
    report.require_whole()
    kept = report.new["allowed partial"]
    assert len(kept) == 19
    assert report.dropped == {"allowed partial": ["extra.a"]}
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k] if k in kept else state[k]), k


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_weights_are_refused(classifier: tuple, tmp_path: Path, value: float) -> None:
    _, state = classifier
    broken = state["norm.weight"].clone()
    broken[3] = value
    save_checkpoint(tmp_path / "x.pth", state | {"norm.weight": broken})
    with pytest.raises(NumericError, match=r"NaN or infinity in 1 tensor: norm\.weight"):
        load_pretrained(tiny(), tmp_path / "x.pth")


def test_half_precision_is_converted_to_fp32(classifier: tuple, tmp_path: Path) -> None:
    _, state = classifier
    save_checkpoint(tmp_path / "x.pth", {k: v.half() for k, v in state.items()})
    model = tiny()
    load_pretrained(model, tmp_path / "x.pth")
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, state["head.weight"].half().float())


def test_folded_batch_norm_fits_only_frozen_batch_norm(tmp_path: Path) -> None:
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone

    from pvt_det.config import get_config

    cfg = get_config()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    model = build_resnet_backbone(cfg, ShapeSpec(channels=3))
    state = {k: v for k, v in model.state_dict().items() if "running" not in k}
    save_checkpoint(tmp_path / "x.pth", state | {"stem.fc.weight": torch.zeros(1000, 2048)})
    report = load_pretrained(model, tmp_path / "x.pth")
    assert list(report.defaults) == ["batch-norm statistics (folded into the file's scales)"]
    assert list(report.dropped) == ["fc"]
    cfg.MODEL.RESNETS.NORM = "BN"
    with pytest.raises(CheckpointError, match=r"106 missing: .*running_mean"):
        load_pretrained(build_resnet_backbone(cfg, ShapeSpec(channels=3)), tmp_path / "x.pth")


def test_round_trip_to_published_layout_is_exact(classifier: tuple, tmp_path: Path) -> None:
    path, state = classifier
    detector = Fpn(tiny(num_classes=0))
    load_pretrained(detector, path)
    trunk = rename(detector.state_dict(), "a detector", published=True)
    assert trunk.keys() == tiny(num_classes=0).state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in trunk.items())
    save_checkpoint(tmp_path / "t.pth", trunk)
    assert list(read_checkpoint(tmp_path / "t.pth")) == list(trunk)


def test_rename_refuses_unknown_layouts_and_names() -> None:
    with pytest.raises(CheckpointError, match=r"^x\.pth: its 1 tensors match no known layout"):
        rename({"a": torch.zeros(1)}, "x.pth", published=True)
    mixed = {"layers.0.1.0.pos_embed": torch.zeros(1, 9, 8), "stranger.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"^x\.pth: stranger\.weight: not part of the layout MMDet"):
        rename(mixed, "x.pth", published=True)
