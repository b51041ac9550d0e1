"""Pyramid backbones of timm in Detectron2, for comparisons with PVT under the same heads and recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from pvt_det.errors import ConfigError
from pvt_det.modeling.backbone import require_three_channels
from pvt_det.modeling.registration import register
from pvt_det.models.timm_models import convert_checkpoint, create_timm_model, require_timm_model
from pvt_det.models.trunk import check_drop_path_rate
from pvt_det.models.variants import STAGES, STRIDES
from pvt_det.utils.text import listed

# Height and width in pixels of the image that every new backbone is tried on.
_TRIED_SIZE = (64, 96)
# Parts of the models of timm that have no `group_matcher`.
_PARTS = {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}


class TimmBackbone(Backbone):
    """A model of timm as a backbone, which returns feature maps by name.

    The keys of the state dict are those of timm, with the prefix `timm.`. What only the classifier needs, and stages
    after the last one in `out_features`, do not exist.

    Args:
        name: Name of a model of timm with feature maps of strides 4, 8, 16 and 32, such as
            "swin_tiny_patch4_window7_224".
        out_features: Names of the feature maps that `forward` returns: one or more of "stage1" … "stage4", in this
            order. Their strides are 4, 8, 16 and 32.
        drop_path_rate: Stochastic depth rate of the last block, in [0, 1).
        frozen_stages: Number of stages to freeze, 0 to 4. Frozen stages get no gradients and stay in evaluation mode.
        output_norm: Normalization of each returned map: "" for none, "LN" for a LayerNorm over the channels, as in the
            published detectors of Swin and ConvNeXt, or "GN" for a GroupNorm with one group, as in PoolFormer's.

    Raises:
        ConfigError: timm has no such model, or the model is not a pyramid, takes images of one size only, or does not
            have an option.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str] = STAGES,
        drop_path_rate: float = 0.0,
        frozen_stages: int = 0,
        output_norm: str = "",
    ) -> None:
        super().__init__()
        check_drop_path_rate(drop_path_rate)
        model: Any = _create(name, drop_path_rate)
        maps = _find_maps(name, model)
        names = set(model.state_dict())
        indices = [maps[feature][0] for feature in out_features]
        self._indices = model.prune_intermediate_layers(indices, prune_norm=True)
        if hasattr(model, "head"):
            model.head = nn.Identity()  # before version 1.0.31, timm keeps the norms of some heads
        self.timm: Any = model
        # Names of the classifier's tensors that the backbone does not have.
        self.unused = frozenset(f"timm.{key}" for key in names - set(model.state_dict()))
        self._out_features = list(out_features)
        self._out_feature_channels = {feature: maps[feature][1] for feature in out_features}
        self._out_feature_strides = dict(zip(STAGES, STRIDES, strict=True))
        self.output_norms = nn.ModuleDict(
            {feature: _output_norm(output_norm, maps[feature][1]) for feature in out_features}
        )
        self._frozen = _frozen_names(model, frozen_stages)
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key not in self._frozen)
        self._try(name)
        self.train(self.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps named in `out_features`.

        Args:
            x: Normalized images `N×3×H×W` of any size. They are padded to multiples of 32, at the bottom and right.

        Returns:
            Feature maps by name, `{"stage1": N×C1×H/4×W/4, …}`.
        """
        bottom, right = (-side % self.size_divisibility for side in x.shape[2:])
        padded = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
        maps = self.timm.forward_intermediates(
            padded, indices=self._indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return {
            feature: self.output_norms[feature](value) for feature, value in zip(self._out_features, maps, strict=True)
        }

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode. Frozen stages stay in evaluation mode (no stochastic depth, fixed statistics).

        Args:
            mode: Whether to set training mode (True) or evaluation mode (False).

        Returns:
            The backbone itself.
        """
        super().train(mode)
        for prefix, module in self.timm.named_modules():
            keys = [f"{prefix}.{key}" for key, _ in module.named_parameters()]
            if keys and self._frozen.issuperset(keys):
                module.eval()
        return self

    @property
    def size_divisibility(self) -> int:
        """Divisor of image sides, in pixels, for which each map is exactly twice as large as the next."""
        return STRIDES[-1]

    def from_timm(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a classifier of timm to those of this backbone.

        Args:
            tensors: Tensors by timm's names, or by those of the code that was published with the model, if timm
                converts them.

        Returns:
            The tensors under the names of this backbone.
        """
        return {f"timm.{key}": value for key, value in convert_checkpoint(tensors, self.timm).items()}

    @torch.no_grad()
    def _try(self, name: str) -> None:
        """Check the sizes of the maps of a small image that is not square."""
        device = next(self.timm.parameters()).device
        try:
            maps = self.eval()(torch.zeros(1, 3, *_TRIED_SIZE, device=device))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"MODEL.TIMM.NAME {name}: it fails on an image of {_TRIED_SIZE[0]}x{_TRIED_SIZE[1]} pixels ({error}). "
                "Detectors need a model that takes images of any size."
            ) from error
        for feature, value in maps.items():
            stride = self._out_feature_strides[feature]
            expected = (1, self._out_feature_channels[feature], *(side // stride for side in _TRIED_SIZE))
            if value.shape != expected:
                raise ConfigError(
                    f"MODEL.TIMM.NAME {name}: {feature} has the shape {tuple(value.shape)}, expected {expected}."
                )
        self.train()


@register(BACKBONE_REGISTRY)
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the backbone of `MODEL.TIMM`, without an FPN.

    Args:
        cfg: Complete config. Uses `MODEL.TIMM`.
        input_shape: Shape of the images. Must have three channels.

    Raises:
        ConfigError: The images do not have three channels, or a value of `MODEL.TIMM` is invalid.
    """
    require_three_channels(input_shape)
    section = cfg.MODEL.TIMM
    return TimmBackbone(
        section.NAME,
        out_features=section.OUT_FEATURES,
        drop_path_rate=section.DROP_PATH_RATE,
        frozen_stages=section.FROZEN_STAGES,
        output_norm=section.OUTPUT_NORM,
    )


def _create(name: str, drop_path_rate: float) -> nn.Module:
    """Create a model that takes images of any size."""
    require_timm_model(name, "MODEL.TIMM.NAME")
    model, reason = create_timm_model(name, drop_path_rate)
    if model is None:
        raise ConfigError(f"MODEL.TIMM.NAME {name}: {reason}. Set MODEL.TIMM.DROP_PATH_RATE 0.0.")
    return model


def _find_maps(name: str, model: Any) -> dict[str, tuple[int, int]]:
    """Return the index and the channels of each stage's feature map."""
    info = getattr(model, "feature_info", [])
    rows = list(enumerate(info if isinstance(info, list) else info.get_dicts()))
    # The last map of a stride is that of the whole stage.
    found = {row["reduction"]: (index, row["num_chs"]) for index, row in rows}
    missing = [stride for stride in STRIDES if stride not in found]
    if missing or not hasattr(model, "forward_intermediates"):
        raise ConfigError(
            f"MODEL.TIMM.NAME {name}: expected a pyramid with maps of strides 4, 8, 16 and 32. This model has "
            f"{listed([str(stride) for stride in sorted(found)]) or 'none'}."
        )
    return {stage: found[stride] for stage, stride in zip(STAGES, STRIDES, strict=True)}


def _output_norm(kind: str, channels: int) -> nn.Module:
    if kind == "GN":
        return nn.GroupNorm(1, channels)
    return get_norm(kind, channels) or nn.Identity()


def _frozen_names(model: Any, stages: int) -> frozenset[str]:
    """Return the names of the parameters of the stem and of the first stages."""
    if not stages:
        return frozenset()
    parts = model.group_matcher(coarse=True) if hasattr(model, "group_matcher") else _PARTS
    groups = group_with_matcher(model.named_parameters(), parts)
    return frozenset(chain.from_iterable(groups[number] for number in range(stages + 1)))
