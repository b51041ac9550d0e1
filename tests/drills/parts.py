"""Four processes predict in parts, two are killed and started again: the result is that of one process."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from pvt_det.inference.journal import JOURNAL_NAME
from pvt_det.run_folder import DETECTIONS_NAME, IMAGES_NAME, PARTS_FOLDER
from tests.drills.outcome import Outcome
from tests.drills.tiny import SIDE, write_shapes, write_untrained_run

_PROCESSES, _KILLED = 4, 2
_IMAGES, _PARTS, _BATCH = 480, 12, 4
_TIMEOUT = 600.0  # seconds in which a process must end


def run_parts(folder: Path, config_file: str, count: int, *, seed: int = 0, images: int = _IMAGES) -> Outcome:
    """Predict with four processes, kill two of them with SIGKILL, start two others, and merge; repeatedly.

    Args:
        folder: Empty folder for the images, the model and the predictions.
        config_file: Config of a RetinaNet, of which a tiny version with random weights is used.
        count: Number of repetitions.
        seed: Seed of the times of the kills and the choice of the processes.
        images: Number of images.
    """
    outcome = Outcome("parts")
    generator = random.Random(seed)
    write_shapes(folder / "shapes", train=images, val=1, image_size=SIDE)
    (folder / "run").mkdir()
    write_untrained_run(folder / "run", config_file)
    (folder / "shapes/train/broken.jpg").write_bytes(b"broken")
    if (code := _start(folder, folder / "whole").wait(_TIMEOUT)) != 3:
        outcome.failures.append(f"one process: exit code {code}, expected 3 because an image is broken")
        return outcome
    facts: Counter[str] = Counter()
    for attempt in range(count):
        output = folder / f"found{attempt}"
        failure = _run_once(folder, output, generator, facts)
        outcome.tried += 1
        if failure:
            outcome.failures.append(f"repetition {attempt}: {failure}. See {output}")
    outcome.facts = {name: str(value) for name, value in facts.items()}
    return outcome


def _run_once(folder: Path, output: Path, generator: random.Random, facts: Counter[str]) -> str:
    options = ("--parts", str(_PARTS))
    processes = [_start(folder, output, *options) for _ in range(_PROCESSES)]
    try:
        while len(_unfinished(output)) < _PROCESSES and all(process.poll() is None for process in processes):
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 1))
        for process in generator.sample(processes, _KILLED):
            process.send_signal(signal.SIGKILL)
            process.wait()
            facts["processes killed"] += 1
        facts["parts in progress when two were killed"] += len(_unfinished(output))
        processes += [_start(folder, output, *options) for _ in range(_KILLED)]
        codes = [process.wait(_TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    # 3 is that of the process that found the broken image.
    if not set(codes) <= {0, 3, -signal.SIGKILL}:
        return f"exit codes {codes}"
    printed = "".join(path.read_text() for path in output.parent.glob(f"{output.name}.*.log"))
    made = Counter(re.findall(r"^part (\d+) of \d+ is finished", printed, re.MULTILINE))
    if len(made) != _PARTS or max(made.values()) > 1:
        return f"parts were not made once each: {dict(made)}"
    started = Counter(re.findall(r"^part (\d+) of \d+: ", printed, re.MULTILINE))
    facts["parts that another process continued"] += sum(each - 1 for each in started.values())
    merge = _run(output, "--merge", str(output))
    if merge.wait(_TIMEOUT) != 3:
        return f"--merge ended with exit code {merge.returncode}"
    same = [(folder / "whole" / name).read_bytes() == (output / name).read_bytes() for name in _tables()]
    facts["bytes that are equal to those of one process"] += sum((output / name).stat().st_size for name in _tables())
    return "" if all(same) else "the merged files differ from those of one process"


def _tables() -> tuple[str, str]:
    return DETECTIONS_NAME, IMAGES_NAME


def _unfinished(output: Path) -> list[Path]:
    """Return the journals of the parts in progress."""
    return list((output / PARTS_FOLDER).glob(f"*.attempt-*/{JOURNAL_NAME}"))


def _start(folder: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    inputs = [str(folder / "shapes/train"), "--config-file", str(folder / "run"), "--device", "cpu"]
    fixed = ["--no-pictures", "--quiet", "--batch-size", str(_BATCH), "--output", str(output)]
    return _run(output, *inputs, *fixed, *options)


def _run(output: Path, *words: str) -> subprocess.Popen[bytes]:
    code = "import sys; from pvt_det.cli.main import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    number = len(list(output.parent.glob(f"{output.name}.*.log")))
    with (output.parent / f"{output.name}.{number}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, "predict", *words], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
