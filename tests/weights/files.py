"""Small weight files in every supported format."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from pvt_det.weights import save_checkpoint, save_safetensors

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "c.count": torch.tensor(7),
    "d.brain": torch.ones(3, dtype=torch.bfloat16),
}
ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "c.count": np.array(7)}


def write_pickle(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def whole_files(folder: Path) -> list[Path]:
    save_checkpoint(folder / "a.pth", {"model": TENSORS})
    torch.save(TENSORS, folder / "b.pth", _use_new_zipfile_serialization=False)
    save_safetensors(folder / "c.safetensors", TENSORS, {"who": "test"})
    return [folder / "a.pth", folder / "b.pth", folder / "c.safetensors", write_pickle(folder / "d.pkl", ARRAYS)]
