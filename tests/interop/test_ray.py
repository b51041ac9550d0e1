"""Detections of Ray Data's actors are those of one process, also if an actor is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvt_det.errors import ConfigError
from pvt_det.inference.predictor import Predictor
from pvt_det.interop.ray import BatchPredictor

needs_pyarrow = pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="needs the extra ray: pyarrow")
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs the extra ray")


@pytest.fixture
def paths(shapes, tmp_path):
    """Images, one of which is broken."""
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    return [*map(str, sorted((shapes / "train").iterdir())), str(tmp_path / "broken.jpg")]


def expected(run, path: str) -> list[dict]:
    """Return the detections of a predictor in this process."""
    found = Predictor(run, device="cpu")(path)
    boxes = found.pred_boxes.tensor.numpy()
    boxes[:, 2:] -= boxes[:, :2]
    columns = (found.pred_classes.tolist(), boxes.tolist(), found.scores.tolist())
    return [{"category_id": label + 1, "bbox": box, "score": score} for label, box, score in zip(*columns, strict=True)]


def test_missing_pyarrow_is_named(untrained_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow, which is missing\. Run pip install 'pvt_det\[ray\]'"):
        BatchPredictor(untrained_run)


@pytest.fixture
def predictor(untrained_run, monkeypatch):
    """A predictor that needs no pyarrow as long as it makes no table."""
    monkeypatch.setattr("pvt_det.interop.ray._pyarrow", lambda: None)
    return BatchPredictor(untrained_run, device="cpu")


def test_rows_of_files_contents_and_arrays(predictor, untrained_run, paths):
    rows = predictor._rows([paths[0], paths[-1]])
    assert rows[0] == {"height": 64, "width": 64, "detections": expected(untrained_run, paths[0]), "error": None}
    assert len(rows[0]["detections"]) > 3
    assert [rows[1][name] for name in ("height", "width", "detections")] == [None] * 3
    assert "broken.jpg" in rows[1]["error"]
    same = predictor._rows([Path(paths[0]).read_bytes(), b"broken", np.asarray(Image.open(paths[0]).convert("RGB"))])
    assert same[0] == same[2]
    # The last digits depend on the batch.
    scores = [[each["score"] for each in row["detections"]] for row in (same[0], rows[0])]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert "image 1 of the batch" in same[1]["error"]
    assert predictor._rows([b"broken"])[0]["detections"] is None


def test_wrong_batches_are_refused(predictor):
    with pytest.raises(ConfigError, match=r"column 'path' does not exist\. The data has image, id\."):
        predictor({"image": np.array([]), "id": np.array([])})
    with pytest.raises(ConfigError, match="batch_format: the batch is a list"):
        predictor([1])


def test_other_models_are_refused(monkeypatch):
    monkeypatch.setattr("pvt_det.interop.ray._pyarrow", lambda: None)
    with pytest.raises(ConfigError, match="Expected a detector"):
        BatchPredictor("semantic_fpn_pvt_tiny", device="cpu")


@needs_pyarrow
@pytest.mark.parametrize("run", ["untrained_run", "mask_rcnn_run"])
def test_table_has_the_same_columns_for_every_batch(run, request, paths, smallest_variant):
    predictor = BatchPredictor(request.getfixturevalue(run), device="cpu")
    table = predictor({"path": np.array(paths[:2]), "camera": np.array([3, 4])})
    assert table.column_names == ["path", "camera", "height", "width", "detections", "error"]
    assert table["camera"].to_pylist() == [3, 4]
    first = table["detections"].to_pylist()[0][0]
    assert set(first) == {"category_id", "bbox", "score"} | ({"segmentation"} if run == "mask_rcnn_run" else set())
    empty = predictor({"path": np.array(paths[-1:]), "camera": np.array([5])})
    assert empty.schema == table.schema
    without_images = predictor({"image": np.array([], object), "path": np.array([], object)})
    assert without_images.num_rows == 0
    assert without_images.schema.field("detections") == table.schema.field("detections")


@needs_ray
@pytest.mark.slow
def test_two_actors_find_the_same_as_one_process_although_one_is_killed(untrained_run, paths, tmp_path, repo_root):
    import ray

    class Killed(BatchPredictor):
        """Kills one of the actors in its second batch."""

        batches = 0

        def __call__(self, batch):
            self.batches += 1
            if self.batches == 2:
                try:
                    os.close(os.open(tmp_path / "killed", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    return super().__call__(batch)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    environment = {"env_vars": {"PYTHONPATH": str(repo_root)}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=environment, object_store_memory=100 * 2**20)
    try:
        images = ray.data.from_items([{"path": path} for path in paths * 3], override_num_blocks=6)
        found = images.map_batches(
            Killed,
            fn_constructor_args=(str(untrained_run),),
            fn_constructor_kwargs={"device": "cpu"},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=2),
        ).take_all()
    finally:
        ray.shutdown()
    assert (tmp_path / "killed").exists()
    assert sorted(row["path"] for row in found) == sorted(paths * 3)
    for path in paths:
        rows = [row for row in found if row["path"] == path]
        assert len(rows) == 3
        for row in rows:
            if path == paths[-1]:
                assert "broken.jpg" in row["error"]
            else:
                assert row["detections"] == expected(untrained_run, path)
