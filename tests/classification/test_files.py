"""Files of a classification run that are damaged."""

from __future__ import annotations

import json

import pytest
import torch

from pvt_det.classification.files import read_classes_from_weights
from pvt_det.classification.metrics import MetricsWriter
from pvt_det.errors import CheckpointError
from pvt_det.weights import save_safetensors


@pytest.mark.parametrize(
    ("classes", "reason"),
    [("[", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("7", "not a list of strings"), ("[7]", "not a list")],
)
def test_invalid_class_names_in_weights_are_named(tmp_path, classes, reason):
    path = tmp_path / "model.safetensors"
    save_safetensors(path, {"a": torch.zeros(1)}, {"classes": classes})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: the class names in its metadata are {reason}"):
        read_classes_from_weights(str(path))


def test_damaged_rows_of_metrics_are_removed(tmp_path, caplog):
    """A complete but damaged row made every resume fail."""
    rows = [json.dumps({"update": update, "loss": 0.5}) for update in (1, 2, 3)]
    damaged = ["{", "", "7", '{"loss": 1}', '{"update": "x"}', "[" * 100_000]
    content = "\n".join([rows[0], *damaged, *rows[1:], rows[2][:5]]).encode()
    (tmp_path / "metrics.json").write_bytes(b"\xff\x00\n" + content)
    with MetricsWriter(tmp_path, total=9, update=2):
        pass
    assert (tmp_path / "metrics.json").read_text().splitlines() == rows[:2]
    assert "removed 7 rows that cannot be read" in caplog.text
