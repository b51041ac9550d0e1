"""The installed wheel, outside of the checkout: recipes, training from Python and from the command, with MLflow."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import pvt_det

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    results = pvt_det.train("retinanet_pvt_tiny", **given)
    print(json.dumps({"package": pvt_det.__file__, "metrics": results.metrics, "output": str(results.output)}))
"""
SHORT = {"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": [], "SOLVER.WARMUP_ITERS": 1, "SOLVER.IMS_PER_BATCH": 2}
SHORT |= {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu", "DATALOADER.NUM_WORKERS": 0, "LOGGERS": ["mlflow"]}
SHORT |= {"INPUT.MIN_SIZE_TRAIN": [96], "INPUT.MAX_SIZE_TRAIN": 128, "INPUT.MIN_SIZE_TEST": 96}
SHORT |= {"INPUT.MAX_SIZE_TEST": 128}


@pytest.fixture(scope="module")
def installed(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel. It takes PyTorch and the other requirements from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "README.md", "LICENSE", "MANIFEST.in", "pyproject.toml"):
        shutil.copy(repo_root / name, source)
    for name in ("configs", "studies", "pvt_det"):
        shutil.copytree(repo_root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "-q"]
    wheels = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, "wheel", *wheels], check=True)
    (wheel,) = folder.glob("pvt_det-*.whl")
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env/bin/python"
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    # An editable installation of the checkout has the same version.
    subprocess.run([python, "-m", "pip", "-q", "install", "--force-reinstall", "--no-deps", wheel], check=True)
    return python


@pytest.mark.slow
def test_wheel_trains_from_python_and_from_the_command(installed: Path, repo_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs the extra mlflow")
    data = repo_root / "datasets/blood_cells"
    parts = {
        part: (str(data / f"annotations/instances_{part}.json"), str(data / "images")) for part in ("train", "val")
    }
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def run(*command: object) -> str:
        words = list(map(str, command))
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "mine.py").write_text(SCRIPT)
    given = {**parts, "output": "output/python", "overrides": SHORT}
    found = json.loads(run(installed, "mine.py", json.dumps(given)).splitlines()[-1])
    assert Path(found["package"]).is_relative_to(installed.parents[1])
    assert set(found["metrics"]) == {"bbox"}
    assert (tmp_path / "output/python/model_final.pth").is_file()

    pvt_det = installed.with_name("pvt-det")
    words = [word for key, value in SHORT.items() if key != "LOGGERS" for word in (key, value)]
    files = [word for part, (json_file, images) in parts.items()
             for word in (f"--{part}-json", json_file, f"--{part}-images", images)]  # fmt: skip
    run(pvt_det, "train", "retinanet_pvt_tiny", *files, "--output", "output/command", "--logger", "mlflow", *words)
    assert json.loads((tmp_path / "output/command/results.json").read_text())["model"] == "RetinaNet pvt_tiny"
    assert "retinanet_pvt_tiny" in run(pvt_det, "configs")

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert [status for (status,) in store.execute("SELECT status FROM runs")] == ["FINISHED"] * 2
        names = {name for (name,) in store.execute("SELECT DISTINCT key FROM metrics")}
    assert {"total_loss", "bbox/AP"} <= names
