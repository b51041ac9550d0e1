"""Tell which model a set of tensors belongs to, for hints in messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from pvt_det.models.variants import VARIANTS
from pvt_det.weights.translate import TRUNK_PREFIX

_RESNETS: dict[tuple[int, ...], str] = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}


def identify(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the variant that tensors under this package's names belong to; None if it is none that is known."""
    local = {name.removeprefix(TRUNK_PREFIX): tensor for name, tensor in tensors.items()}
    if "stem.conv1.weight" in local:
        name = _RESNETS.get(_depths(local, r"res([2-5])\.(\d+)\.conv1\.weight"))
        return "resnet34" if name == "resnet50" and "res2.0.conv3.weight" not in local else name
    depths = _depths(local, r"block([1-4])\.(\d+)\.norm1\.weight")
    projections = (local.get(f"patch_embed{stage}.proj.weight") for stage in range(1, 5))
    dims = tuple(size for weight in projections if weight is not None for size in weight.shape[:1])
    family = "v1" if "pos_embed1" in local else "v2"
    reduction = local.get("block1.0.attn.sr.weight")
    linear = family == "v2" and reduction is not None and tuple(reduction.shape[2:]) == (1, 1)
    for name, row in VARIANTS.items():
        if (row.family, row.depths, row.embed_dims, row.linear) == (family, depths, dims, linear):
            return name
    return None


def _depths(names: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    count = Counter(found[1] for name in names if (found := re.fullmatch(pattern, name)))
    return tuple(count[stage] for stage in sorted(count))
