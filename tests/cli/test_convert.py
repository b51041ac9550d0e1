"""Tests of `pvt-det convert`, alone and on the way from an MMDetection checkpoint to a table of results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor

from pvt_det.errors import CheckpointError, ConfigError
from pvt_det.models import create_model
from pvt_det.weights import read_checkpoint
from tests.command_line import run_command

REFERENCE = Path(__file__).parents[1] / "weights/golden/mmdet_reference.json"


def write_mmdet(path: Path, name: str, scale: float = 1.0) -> dict[str, Tensor]:
    """Write a checkpoint with MMDetection's keys and seeded random values."""
    shapes = json.loads(REFERENCE.read_text())["cases"][name]["keys"]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        v = torch.randn(shape, generator=generator)
        state[key] = scale * v / v[0].numel() ** 0.5 if len(shape) > 1 else torch.ones(shape) * key.endswith("weight")
    torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": state}, path)
    return state


def run(*arguments: object) -> int:
    return run_command("convert", [str(a) for a in arguments])


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_round_trip_through_safetensors_is_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = create_model("pvt_v2_b0").state_dict()
    torch.save({"model": state}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", "--to", "safetensors", "--output", tmp_path / "b.safetensors") == 0
    assert run(tmp_path / "b.safetensors", "--to", "published", "--output", tmp_path / "c.pth") == 0
    plain = torch.load(tmp_path / "c.pth", weights_only=True)
    assert equal(plain, dict(state))
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata()["source"] == str(tmp_path / "a.pth")
    assert f"{tmp_path / 'c.pth'}: {len(state)} tensors written" in capsys.readouterr().out


def test_converts_mmdetection_detector_and_its_trunk(
    repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = write_mmdet(tmp_path / "m.pth", "retinanet_pvt_tiny")
    config = repo_root / "configs/retinanet_pvt_tiny.yaml"
    for output in ("ours.safetensors", "ours.pth"):
        assert run(tmp_path / "m.pth", "--config-file", config, "--output", tmp_path / output) == 0
    printed = capsys.readouterr().out
    assert (
        "(MMDetection RetinaNet, MMDetection PVT): 192 tensors: 192 loaded, 1 at defaults: loss_normalizer" in printed
    )
    assert "set MODEL.PVT.EMBED_NORM_EPS to 1e-6" in printed
    ours = read_checkpoint(tmp_path / "ours.safetensors")
    assert len(ours) == 192
    assert equal(ours, read_checkpoint(tmp_path / "ours.pth"))
    assert torch.equal(ours["backbone.top_block.p7.weight"], state["neck.fpn_convs.4.conv.weight"])

    assert run(tmp_path / "ours.pth", "--to", "published", "--output", tmp_path / "trunk.pth") == 0
    trunk = create_model("pvt_tiny", num_classes=0)
    trunk.load_state_dict(torch.load(tmp_path / "trunk.pth", weights_only=True), strict=True)
    fused = state["backbone.layers.2.1.1.attn.attn.in_proj_weight"]
    assert torch.equal(torch.cat([trunk.block3[0].attn.q.weight, trunk.block3[0].attn.kv.weight]), fused)


def test_classifier_weights_are_refused_for_a_detector(repo_root: Path, tmp_path: Path) -> None:
    torch.save(create_model("pvt_tiny").state_dict(), tmp_path / "a.pth")
    config = repo_root / "configs/retinanet_pvt_tiny.yaml"
    with pytest.raises(CheckpointError, match=r"untrained: fpn, head\. Use the weights of a whole model"):
        run(tmp_path / "a.pth", "--config-file", config, "--output", tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


def test_different_backbone_is_reported(repo_root: Path, tmp_path: Path) -> None:
    write_mmdet(tmp_path / "m.pth", "retinanet_pvt_tiny")
    config = repo_root / "configs/retinanet_pvt_small.yaml"
    with pytest.raises(CheckpointError, match="this file is a pvt_tiny, the model is pvt_small"):
        run(tmp_path / "m.pth", "--config-file", config, "--output", tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--to", "published", "--output", "x.safetensors"], r"expected a name that ends in \.pth"),
        (["--to", "safetensors", "--output", "x.pth"], r"expected a name that ends in \.safetensors"),
        (["--config-file", "c.yaml", "--output", "x.bin"], r"ends in \.pth or \.safetensors"),
        (["--output", "x.pth"], "one of the arguments --config-file --to is required"),
    ],
)
def test_invalid_options_are_reported(arguments: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        run("source.pth", *arguments)


def test_malicious_file_is_refused_in_one_line(repo_root: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was_executed"
    (tmp_path / "x.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    command = [
        sys.executable,
        "-m",
        "pvt_det.cli.main",
        "convert",
        tmp_path / "x.pkl",
        "--to",
        "published",
        "--output",
        "y.pth",
    ]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'x.pkl'}: refused")
    assert "Traceback" not in done.stderr
    assert not marker.exists()


@pytest.mark.slow
def test_mmdetection_checkpoint_to_results_table(
    repo_root: Path, shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Convert, evaluate and compare. The original file gives the same detections as the converted one."""
    data = shared_dir / "data/coco_mini"
    truth = json.loads((data / "annotations/instances_val2017.json").read_text())
    truth["images"] = truth["images"][:2]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
    (tmp_path / "val.json").write_text(json.dumps(truth))
    write_mmdet(tmp_path / "m.pth", "retinanet_pvt_tiny", scale=0.8)
    config = str(repo_root / "configs/retinanet_pvt_tiny.yaml")
    assert run(tmp_path / "m.pth", "--config-file", config, "--output", tmp_path / "ours.safetensors") == 0

    found = {}
    for name, weights in (("converted", "ours.safetensors"), ("direct", "m.pth")):
        arguments = ["--eval-only", "--config-file", config, "--output", str(tmp_path / name)]
        arguments += ["--val-json", str(tmp_path / "val.json"), "--val-images", str(data / "val2017")]
        overrides = {
            "MODEL.WEIGHTS": tmp_path / weights,
            "MODEL.DEVICE": "cpu",
            "MODEL.PVT.EMBED_NORM_EPS": "1e-6",
            "INPUT.MIN_SIZE_TEST": 160,
            "INPUT.MAX_SIZE_TEST": 256,
            "DATALOADER.NUM_WORKERS": 0,
        }
        assert run_command("train", [*arguments, *(str(word) for pair in overrides.items() for word in pair)]) == 0
        results = json.loads((tmp_path / name / "evaluation.json").read_text())
        found[name] = json.loads((tmp_path / name / results["detections"]["file"]).read_text())
    assert len(found["converted"]) == 2 * 100
    assert found["converted"] == found["direct"]

    capsys.readouterr()
    assert run_command("compare", [str(tmp_path / "converted"), str(tmp_path / "direct"), "--format", "csv"]) == 0
    header, first, second = capsys.readouterr().out.strip().splitlines()
    assert "box AP published" in header
    assert "36.7" not in first  # smaller images and another epsilon than in the published recipe
    assert "+0.00" in second
