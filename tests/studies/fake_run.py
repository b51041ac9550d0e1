"""Stands in for `pvt-det train`, `eval` and `train-cls` in the tests of studies: writes the files of a run at once.

`FAKE_RUNS` names a JSON file with what happens in the folders whose path contains a text: `exit` with `print`, `wait`
for a signal after a checkpoint, `kill` itself, or `noise` of the boxes in pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

IMAGES = 12


def main() -> int:
    command, words = sys.argv[1], sys.argv[2:]
    values = dict(word.split("=", 1) for word in words if "=" in word)
    folder = Path(values.get("--output") or words[words.index("--output") + 1])
    plan = json.loads(Path(os.environ["FAKE_RUNS"]).read_text())
    behavior = {key: value for text, part in plan.items() if text in f"{folder}" for key, value in part.items()}
    resumed = (folder / "last_checkpoint").exists()
    gpu, threads = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")
    call = {"folder": str(folder), "gpu": gpu, "threads": threads, "resumed": resumed, "words": words}
    with Path(os.environ["FAKE_RUNS"]).with_name("calls.jsonl").open("a") as file:
        file.write(json.dumps({**call, "start": time.time()}) + "\n")
    if behavior.get("exit"):
        print(behavior["print"], file=sys.stderr)
        return behavior["exit"]
    if command != "eval":
        (folder / "last_checkpoint").write_text("model_0000001.pth")
    if behavior.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if behavior.get("wait") and not resumed:
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
        (folder / "metrics.json").write_text('{"iteration": 1}\n')
        while not stop:
            time.sleep(0.02)
        print("stopped: by SIGTERM after iteration 2. Resume with: pvt-det train")
        return 75
    time.sleep(behavior.get("seconds", 0))
    if command == "train-cls":
        classifier(folder)
    else:
        detector(folder, command, int(values.get("SEED", 0)), behavior)
    return 0


def classifier(folder: Path) -> None:
    (folder / "model_best.safetensors").write_text("weights")
    metrics = {"classification": {"top1": 50.0}}
    final = {"file": "model_final.safetensors", "sha256": "", "iteration": 1, "metrics": metrics}
    write(folder, "training", {"final": final}, {"shown": "final", "model": "classifier", "config_file": "pvt_v2_b0"})


def detector(folder: Path, command: str, seed: int, behavior: dict) -> None:
    objects, noise = random.Random(0), random.Random(f"{seed} {behavior.get('noise')}")
    boxes = [[objects.uniform(0, 60), objects.uniform(0, 60), 30.0, 30.0] for _ in range(2 * IMAGES)]
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(IMAGES)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": n, "image_id": n // 2, "category_id": 1, "bbox": box, "area": 900.0, "iscrowd": 0}
            for n, box in enumerate(boxes)
        ],
    }
    pixels = behavior.get("noise", 0.0)
    moved = [[side + pixels * noise.gauss(0, 1) for side in box] for box in boxes]
    found = [{"image_id": n // 2, "category_id": 1, "bbox": box, "score": 0.9} for n, box in enumerate(moved)]
    files = {"detections": ("detections.json", found), "ground_truth": ("truth.json", truth)}
    recorded = {}
    for key, (name, content) in files.items():
        text = json.dumps(content)
        (folder / name).write_text(text)
        recorded[key] = {"file": name, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    ap = behavior.get("ap", 50.0) + seed
    metrics = {"bbox": {"AP": ap, "AR100": 60.0}}
    lines = [{"iteration": i, "total_loss": 2.0 - i, "bbox/AP": ap - 1 + i} for i in range(2)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    kind, name = ("evaluation", "evaluated") if command == "eval" else ("training", "final")
    final = {"file": "model_final.pth", "sha256": "", "iteration": 2, "metrics": metrics}
    write(folder, kind, {name: final}, {"shown": name, **recorded, **behavior.get("results", {})})


def write(folder: Path, kind: str, checkpoints: dict, fields: dict) -> None:
    results = {
        "kind": kind, "config_file": "", "model": "RetinaNet", "recipe": "adamw", "dataset": "things",
        "parameters": 23_000_000, "data": [], "checkpoints": checkpoints, "training_seconds": 3600.0, **fields,
    }  # fmt: skip
    name = "evaluation.json" if kind == "evaluation" else "results.json"
    (folder / name).write_text(json.dumps(results))


if __name__ == "__main__":
    sys.exit(main())
