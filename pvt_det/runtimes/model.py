"""Exported files with the interface of Detectron2's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from torch import Tensor, nn

from pvt_det.config.architecture import head_key, is_segmentor
from pvt_det.errors import ConfigError
from pvt_det.modeling.finite import require_finite
from pvt_det.modeling.rcnn import postprocess
from pvt_det.runtimes.backend import IMAGES_NAME, Function
from pvt_det.runtimes.backends import backend_of, exported_digest, is_exported
from pvt_det.runtimes.metadata import (
    PANOPTIC,
    SEGMENTATION,
    Metadata,
    read_metadata,
    require_same_graph,
)
from pvt_det.utils.digest import weights_digest
from pvt_det.weights import load_pretrained

_Record = dict[str, Any]


class ExportedModel(nn.Module):
    """An exported detector or segmentor that is called like the model it was made from.

    It can be pickled as long as the file exists, which is then opened again.

    Args:
        path: The exported file.
        metadata: Its metadata.
        bgr: Whether it is called with BGR images, as the original model is. The file itself takes RGB.
        score_threshold: Minimum score of the detections, at least that of the file.
        stride: Stride of the logits of label maps.
        combine: For panoptic segmentation: MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH, .STUFF_AREA_LIMIT and
            .INSTANCES_CONFIDENCE_THRESH.
        precision: Number format to compute in, "fp32" or "bf16".

    Raises:
        CheckpointError: The file is damaged, or the runtime does not support it.
        ConfigError: The runtime is not installed.
    """

    def __init__(
        self,
        path: Path,
        metadata: Metadata,
        *,
        bgr: bool = False,
        score_threshold: float = 0.0,
        stride: int = 4,
        combine: tuple[float, int, float] | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.path = path
        self.metadata = metadata
        self.bgr = bgr
        self.score_threshold = score_threshold
        self.stride = stride
        self.combine = combine
        self.precision = precision
        self.digest = exported_digest(path)
        self._open()
        self.eval()

    @classmethod
    def from_config(cls, cfg: CfgNode, path: Path) -> ExportedModel:
        """Open an exported file with the settings of a config.

        Args:
            cfg: The config of the file, as `load_model_config` returns it.
            path: The exported file.

        Raises:
            CheckpointError: The file is damaged, or the runtime does not support it.
            ConfigError: The runtime is not installed, or the config does not fit the file.
        """
        metadata = read_metadata(path)
        require_same_graph(cfg, path, metadata)
        settings = cfg.MODEL.PANOPTIC_FPN.COMBINE
        return cls(
            path,
            metadata,
            bgr=cfg.INPUT.FORMAT == "BGR",
            score_threshold=0.0 if is_segmentor(cfg) else cfg.MODEL[head_key(cfg)].SCORE_THRESH_TEST,
            stride=cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
            combine=(settings.OVERLAP_THRESH, settings.STUFF_AREA_LIMIT, settings.INSTANCES_CONFIDENCE_THRESH),
            precision=cfg.TEST.PRECISION,
        )

    def with_function(self, function: Function) -> ExportedModel:
        """Return this model with another function that has the same outputs.

        Args:
            function: Maps images `N×3×H×W`, uint8, RGB, to outputs by name.
        """
        # Not copy.copy, which would open the file again.
        other = object.__new__(type(self))
        other.__dict__ = self.__dict__ | {"_function": function}
        return other

    @property
    def runtime(self) -> str:
        """Name and version of the runtime, and the precision that it computes in."""
        return f"{backend_of(self.path).version()}, {self.precision}"

    def forward(self, batched_inputs: Sequence[_Record]) -> list[_Record]:
        """Run the model.

        Args:
            batched_inputs: One dictionary per image, with its `image` as a uint8 tensor `3×H×W`, and optionally the
                `height` and `width` of the results in pixels.

        Returns:
            `{"instances": Instances}` for each image, `{"sem_seg": logits}` (`K×height×width`) of a segmentor, or both
            and `panoptic_seg` of Panoptic FPN.

        Raises:
            NumericError: Masks or logits are NaN or infinite.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, record in enumerate(batched_inputs):
            groups.setdefault(tuple(record["image"].shape), []).append(number)
        results: dict[int, _Record] = {}
        for numbers in groups.values():
            # Images are not padded to a common size, which would change the feature maps.
            records = [batched_inputs[number] for number in numbers]
            results |= zip(numbers, self._run(records), strict=True)
        return [results[number] for number in range(len(batched_inputs))]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._open()

    def _open(self) -> None:
        self._function = backend_of(self.path).open(
            self.path, outputs=self._outputs(), threads=torch.get_num_threads(), precision=self.precision
        )

    def inference(
        self, batched_inputs: Sequence[_Record], do_postprocess: bool = False
    ) -> tuple[list[Instances], Tensor]:
        """Run a model for panoptic segmentation like the method of Detectron2's PanopticFPN.

        Args:
            batched_inputs: As for `forward`, with images of the same size.
            do_postprocess: Must be False.

        Returns:
            The detections of each image, with `pred_masks` as probabilities `N×1×M×M`, and the logits of the classes of
            label maps, `N×K×H×W` of the padded images.
        """
        assert not do_postprocess
        outputs, size = self._call(batched_inputs)
        found = [self._instances(outputs, number, size) for number in range(len(batched_inputs))]
        return found, self._scaled(outputs["semantic_logits"])

    def _outputs(self) -> tuple[str, ...]:
        """Return the outputs that are used. The logits suffice for label maps."""
        if self.metadata.task == SEGMENTATION:
            return ("logits",)
        return tuple(name for name in self.metadata.outputs if name != "semantic_labels")

    def _call(self, records: Sequence[_Record]) -> tuple[dict[str, NDArray[Any]], tuple[int, int]]:
        """Return the outputs for images of the same size, and that size."""
        images = np.stack([record["image"].numpy() for record in records])
        assert images.dtype == np.uint8, images.dtype
        outputs = self._function(np.ascontiguousarray(images[:, ::-1] if self.bgr else images))
        return outputs, (images.shape[2], images.shape[3])

    def _run(self, records: Sequence[_Record]) -> list[_Record]:
        own = tuple(records[0]["image"].shape[1:])
        sizes = [(record.get("height", own[0]), record.get("width", own[1])) for record in records]
        if self.metadata.task == PANOPTIC:
            found, logits = self.inference(records)
            return [self._combined(*each) for each in zip(found, logits, sizes, strict=True)]
        outputs, own = self._call(records)
        if "boxes" in outputs:
            return [
                {"instances": postprocess(self._instances(outputs, number, own), *size)}
                for number, size in enumerate(sizes)
            ]
        logits = self._scaled(outputs["logits"])
        return [{"sem_seg": sem_seg_postprocess(each, own, *size)} for each, size in zip(logits, sizes, strict=True)]

    def _instances(self, outputs: Mapping[str, NDArray[Any]], number: int, size: tuple[int, int]) -> Instances:
        """Return the detections of an image in pixels of the model's image."""
        kept = (outputs[IMAGES_NAME] == number) & (outputs["scores"] > self.score_threshold)
        names = ("boxes", "scores", "labels", *(("masks",) if "masks" in outputs else ()))
        found = {name: torch.from_numpy(outputs[name][kept]) for name in names}
        instances = Instances(
            size, pred_boxes=Boxes(found["boxes"]), scores=found["scores"], pred_classes=found["labels"]
        )
        if "masks" in found:
            instances.pred_masks = found["masks"][:, None]
        return instances

    def _scaled(self, outputs: NDArray[Any]) -> Tensor:
        logits = torch.from_numpy(outputs)
        require_finite([logits], "scores")
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)

    def _combined(self, instances: Instances, logits: Tensor, size: tuple[int, int]) -> _Record:
        assert self.combine is not None
        found = postprocess(instances, *size)
        scores = sem_seg_postprocess(logits, instances.image_size, *size)
        panoptic = combine_semantic_and_instance_outputs(found, scores.argmax(dim=0), *self.combine)
        return {"instances": found, "sem_seg": scores, "panoptic_seg": panoptic}


def load_model(cfg: CfgNode, weights: str, *, allow_partial: Sequence[str] = ()) -> nn.Module:
    """Build the model of a config with trained weights, or open an exported file instead.

    Args:
        cfg: The config of the model.
        weights: Any value of `MODEL.WEIGHTS`, or the path of an exported file.
        allow_partial: Patterns of keys that may be missing from or unexpected in the weights.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: The weights or the exported file are missing, damaged or do not fit.
        ConfigError: The config does not fit an exported file, or its runtime is missing.
    """
    if is_exported(weights):
        if allow_partial:
            raise ConfigError(f"--allow-partial has no effect on {weights}, which is complete. Leave it out.")
        return ExportedModel.from_config(cfg, Path(weights))
    model = build_model(cfg)
    load_pretrained(model, weights, allow_partial=allow_partial).require_whole()
    return model.eval()


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, or of the exported file.

    Args:
        model: A model from `load_model`.
    """
    return model.digest if isinstance(model, ExportedModel) else weights_digest(model.state_dict())
