"""Entry points of classification."""

from __future__ import annotations

import pytest

from pvt_det.classification.config import TrainConfig
from pvt_det.classification.run import start_run
from pvt_det.errors import Interrupted


@pytest.mark.parametrize(("eval_only", "hint"), [(True, ""), (False, " Resume with: the same command with --resume")])
def test_interrupted_run_says_how_to_resume_only_if_it_can_be(tmp_path, eval_only, hint):
    weights = {"eval_only": True, "weights": "x"} if eval_only else {}
    cfg = TrainConfig(model="pvt_v2_b0", data="x", output=str(tmp_path), device="cpu", **weights)
    with pytest.raises(Interrupted) as error, start_run(cfg):
        raise Interrupted("by SIGTERM.")
    assert str(error.value) == f"by SIGTERM.{hint}"
