"""The suites run, their tables show every row, and contestants compute the same."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from rich.console import Console

from benchmarks import __main__ as benchmark
from benchmarks import evaluation, mapping, plan, whole
from benchmarks.implementations import COMPILED, OURS, TEXTBOOK, Case
from benchmarks.measure import take_turns
from benchmarks.photos import DETECTRON2, endless_batches, read_records, readers
from benchmarks.report import as_table
from benchmarks.stock import AS_DETECTRON2, spread_scores, stock_detector
from benchmarks.suites import make_row, peaks
from pvt_det.config import load_config
from pvt_det.errors import ConfigError, DataError

SMALL = ("MODEL.DEVICE", "cpu", "MODEL.PVT.DROP_PATH_RATE", "0", "INPUT.MIN_SIZE_TRAIN", "[64]")
SMALL += ("INPUT.MIN_SIZE_TEST", "64", "INPUT.RESIZE_BACKEND", "pil", "INPUT.RANDOM_FLIP", "none")


@pytest.fixture
def here(monkeypatch):
    """Measure memory in this process: a fresh one takes seconds to import everything."""
    for suite in (evaluation, mapping, plan):
        monkeypatch.setattr(suite, "in_own_process", lambda function, *arguments: function(*arguments))


@pytest.fixture
def coco_mini(shared_dir):
    return shared_dir / "data/coco_mini"


@pytest.mark.parametrize("name", ["retinanet_pvt_tiny", "mask_rcnn_pvt_tiny"])
def test_both_detectors_are_one_model(repo_root, coco_mini, name):
    """The same losses, and the same detections, as many as a trained model has."""
    cfg = load_config(repo_root / "configs" / f"{name}.yaml", [*SMALL, *AS_DETECTRON2])
    torch.manual_seed(0)
    ours = build_model(cfg)
    records = read_records(coco_mini, "val2017", 1)
    train, test = (readers(cfg, records, is_train=is_train)["pvt_det"](0) for is_train in (True, False))
    spread_scores(ours, [test])
    losses, found = [], []
    for model in (ours, stock_detector(cfg, ours)):
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model.train()([train]))
        with torch.no_grad():
            found.append(model.eval()([test])[0]["instances"])
    # Small differences of untrained features are large ones of spread scores.
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=1e-4)
    assert len(found[0]) == len(found[1]) > 50
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("workers", "names"), [(0, [OURS, DETECTRON2]), (1, [OURS, COMPILED, DETECTRON2])])
def test_detector_suite(repo_root, coco_mini, workers, names):
    config = str(repo_root / "configs/retinanet_pvt_tiny.yaml")
    cases = [Case(config, "detector", mode, "bf16", 1, 48, 64) for mode in ("inference", "training")]
    setup = whole.Setup(coco_mini, 1, torch.device("cpu"), workers)
    rows = list(whole.run_detectors(cases, setup, 1, compiled=COMPILED in names, memory=False))
    assert [(row.case.mode, row.contestant, row.case.dtype) for row in rows] == [
        (mode, name, "fp32" if name == DETECTRON2 else "bf16") for mode in ("inference", "training") for name in names
    ]
    assert [row.speedup for row in rows if row.contestant == OURS] == [1, 1]
    assert all(row.seconds > 0 for row in rows)


@pytest.mark.parametrize(("batch", "photos"), [(1, 5), (2, 5), (3, 6), (8, 5)])
def test_graphs_are_recorded_on_photos_that_all_come_twice(monkeypatch, tmp_path, batch, photos):
    monkeypatch.setattr(whole, "read_records", lambda *_: [{}] * photos)
    batches = endless_batches(int, photos, batch, 0, pin=False)
    seen = []
    case = Case("m", "detector", "inference", "bf16", batch, 48, 64)
    whole._record_graphs(lambda: seen.append(next(batches)), case, whole.Setup(tmp_path, 9, torch.device("cuda")))
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert next(batches) == seen[0]


@pytest.mark.parametrize("fails", [OURS, TEXTBOOK])
def test_who_runs_out_of_a_gpus_memory_has_a_row_that_says_so(fails):
    def step(name):
        calls.append(name)
        if name == fails and calls.count(name) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return 512.0

    calls, names = [], (OURS, TEXTBOOK)
    seconds = take_turns({name: partial(step, name) for name in names}, torch.device("cpu"), 3)
    assert (calls.count(fails), len(calls)) == (3, 7)
    calls[:] = [fails] * 2
    memory = peaks(names, step)
    rows = {
        name: make_row(Case("m", "pyramid", "training", "fp32", 1, 32, 32), name, seconds, memory) for name in names
    }
    failed = rows.pop(fails)
    (other,) = rows.values()
    assert (failed.seconds, failed.images_per_s, failed.speedup, failed.memory_mib) == (None, None, None, None)
    assert (other.speedup, other.memory_share) == ((1, 1) if fails == TEXTBOOK else (None, None))
    assert (other.seconds > 0, other.memory_mib) == (True, 512)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(as_table([failed, other]))
    assert shown.get().count("out of memory") == 1


@pytest.mark.usefixtures("here")
def test_plan_of_a_detector(repo_root, monkeypatch):
    case = Case(str(repo_root / "configs/retinanet_pvt_tiny.yaml"), "detector", "training", "fp32", 1, 64, 64)
    (found,) = plan.plan_batches([case], 1e6, torch.device("cpu"))
    assert found.fixed_mib > 100
    assert found.case.batch > 100
    monkeypatch.setattr(plan, "in_own_process", raise_out_of_memory)
    with pytest.raises(ConfigError, match=r"too little memory to measure .* three images of 64x64: add --device cpu"):
        next(plan.plan_batches([case], 1e6, torch.device("cpu")))


def raise_out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.usefixtures("here")
def test_mapper_suite(coco_mini):
    rows = {(row.recipe, row.contestant): row for row in mapping.run_mapper(coco_mini, ["paper", "jitter"], 3, 1)}
    for recipe, levels in (("paper", 8), ("jitter", 0.5)):
        row = rows[recipe, "pvt_det"]
        assert max(row.box_difference, row.mask_difference) < 0.01
        assert 0 < row.level_difference < levels
        assert row.images_per_s > 0
    if ("annotations", "pvt_det") in rows:
        assert rows["annotations", "pvt_det"].worker_mib < rows["annotations", "a list"].worker_mib


@pytest.mark.usefixtures("here")
def test_evaluation_suite(tmp_path, capsys):
    args = benchmark.build_parser().parse_args(
        ["--suite", "evaluation", "--images", "30", "--repeats", "1", "--json", str(tmp_path / "found.json")]
    )
    assert benchmark.run(args) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["evaluator"] for row in rows] == [evaluation.HOTCOCO, evaluation.PYCOCOTOOLS]
    assert all(row["evaluator"] in shown for row in rows)
    assert rows[0]["difference"] < 1e-12
    assert rows[0]["objects"] == 216
    # 32 bytes a detection, and the interpreter's own growth.
    assert rows[0]["kept_mib"] < 20


def test_generated_detections_are_neither_perfect_nor_worthless():
    truth = evaluation.generate_truth(40)
    found = list(evaluation.generate_detections(truth))
    assert all(len(image.scores) == 100 for image in found)
    ap = evaluation.evaluate_hotcoco(truth, found, "bbox").stats[0]
    assert 0.1 < ap < 0.9


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--suite", "mapper"], ConfigError, "--suite mapper needs --data DIR, a folder in COCO's layout"),
        (
            ["--suite", "mapper", "--compile"],
            ConfigError,
            "--compile: .* does not read it. What does: .*trunk, .*detector",
        ),
        (["--memory", "8"], ConfigError, "--memory: --suite trunk does not read it. What does: --plan"),
        (["--plan", "--data", "."], ConfigError, "--data: --plan does not read it"),
        (["--plan", "--models", "pvt_smal"], ConfigError, "expected one of pvt_tiny.* or config files, such as"),
        (["--suite", "growth", "--dtypes", "fp32", "bf16"], ConfigError, "give one of --modes and one of --dtypes"),
        (["--suite", "detector", "--data", ".", "--compile"], ConfigError, "detectors are compiled on a GPU only"),
        (["--device", "gpu"], ConfigError, "--device gpu: expected cpu or cuda"),
        (["--repeats", "0"], ConfigError, "'0' is no whole number of 1 or more"),
        (["--suite", "detector", "--data", ".", "--models", "pvt_small"], ConfigError, "expected config files"),
        (["--plan", "--suite", "growth"], ConfigError, "--plan and --suite growth: give one of the two"),
        (["--plot", "x.png"], ConfigError, "--plot: --suite trunk does not read it. What does: --suite growth"),
        (["--models", "pvt_smal"], ConfigError, "expected one of pvt_tiny"),
        (["--suite", "mapper", "--data", "."], DataError, "expected COCO's layout, with annotations/instances_train"),
    ],
)
def test_what_is_missing_is_named(words, error, message):
    with pytest.raises(error, match=message):
        benchmark.run(benchmark.build_parser().parse_args(words))
