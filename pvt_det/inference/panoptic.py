"""Find objects and classify all other pixels with a trained model for panoptic segmentation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances

from pvt_det.errors import ConfigError
from pvt_det.inference.base import BasePredictor, class_names, require_kind_of_model, stuff_names
from pvt_det.inference.pixels import Image
from pvt_det.inference.segmentor import NO_CLASS, Labels, best_classes
from pvt_det.inference.segments import PanopticSegments, measured
from pvt_det.modeling.rcnn import postprocess
from pvt_det.utils.precision import inference_autocast

_THRESHOLD = "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"


class PanopticPredictor(BasePredictor[PanopticSegments]):
    """Divides images into segments with a trained Panoptic FPN: each object, and the pixels of each other class.

    A call returns the `PanopticSegments` of each image: `ids`, an `H×W` int32 array of the original size with the
    segment id of each pixel (0 for none), and `segments_info`, a dict for each segment. It has the methods `plot`,
    `save`, `counts` and `shares`.

    Boxes, masks and classes are combined as in Detectron2 (Panoptic Feature Pyramid Networks, arXiv 1901.02446, section
    3) with the thresholds of `MODEL.PANOPTIC_FPN.COMBINE`.

    Args:
        config: A run folder, a config file, or an exported file, such as "mine.onnx" or "mine_openvino".
        weights: Weights of the model, in any form that `MODEL.WEIGHTS` accepts. "" selects `model_best.pth`, or
            otherwise `model_final.pth`, next to the config.
        overrides: Config keys and values, such as `["MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "1000"]`.
        score_threshold: Minimum score of the objects, 0 to 1. None uses the threshold of the config,
            `MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH`, which is 0.5 by default.
        batch_size: Maximum number of images per forward pass, at least 1. Only images that have the same size after
            resizing are batched, because padding would change the predictions.
        device: Device such as "cuda:1", "mps" or "cpu". "" selects the first GPU if one is available.
        public_key: PEM file with which the signature of the config's folder is verified before anything in it is read.
            The weights must be a file in that folder. "" verifies nothing.

    Attributes:
        class_names: Class names, by class index: the classes of objects, then the others. They are "class 0", … and
            "stuff 1", … if neither the run nor its data set defines names.
        thing_count: Number of classes of objects, which are the first ones.
        cfg: The complete config.
    """

    def __init__(
        self,
        config: str | os.PathLike[str],
        weights: str | os.PathLike[str] = "",
        *,
        overrides: Sequence[str] = (),
        score_threshold: float | None = None,
        batch_size: int = 8,
        device: str = "",
        public_key: str | os.PathLike[str] = "",
    ) -> None:
        if score_threshold is not None and _THRESHOLD in overrides[::2]:
            raise ConfigError(
                f"The minimum score is given twice: {score_threshold} and {_THRESHOLD}. Leave one of them out."
            )
        self._score_threshold = score_threshold
        self.thing_count = 0
        super().__init__(
            config, weights, overrides=overrides, batch_size=batch_size, device=device, public_key=public_key
        )

    @property
    def score_threshold(self) -> float:
        """Minimum score of the objects, 0 to 1."""
        return self.cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH

    def _check(self, cfg: CfgNode, path: Path) -> tuple[str, ...]:
        require_kind_of_model(cfg, path, "PanopticPredictor")
        if self._score_threshold is not None:
            _set_threshold(cfg, self._score_threshold)
        things, stuff = class_names(cfg), stuff_names(cfg)
        count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if count > NO_CLASS:
            raise ConfigError(f"{path}: MODEL.SEM_SEG_HEAD.NUM_CLASSES = {count}: expected at most {NO_CLASS}.")
        self.thing_count = len(things)
        return (*things, *stuff)

    def _outputs(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        model: Any = self._model
        with self._lock, torch.no_grad(), inference_autocast(self.cfg):
            # Detectron2's postprocessing resizes the scores of all classes and decodes all masks at once, which takes
            # gigabytes for a photograph.
            found, scores = model.inference(records, do_postprocess=False)
        return [{"instances": each, "sem_seg": map_} for each, map_ in zip(found, scores, strict=True)]

    def _run(self, records: list[dict[str, Any]]) -> list[tuple[Instances, Labels]]:
        results = []
        for output, record in zip(self._outputs(records), records, strict=True):
            size, (height, width) = (record["height"], record["width"]), output["instances"].image_size
            instances = output["instances"]
            # Those with a lower score are not used, and pasting their masks takes time.
            instances = instances[instances.scores.double() >= self.score_threshold]
            labels = best_classes(output["sem_seg"][:, :height, :width], size)
            results.append((postprocess(instances, *size).to("cpu"), labels))
        return results

    def _result(self, output: tuple[Instances, Labels], image: Image) -> PanopticSegments:
        instances, labels = output
        settings = self.cfg.MODEL.PANOPTIC_FPN.COMBINE
        ids, infos = combine_semantic_and_instance_outputs(
            instances,
            torch.from_numpy(labels),
            settings.OVERLAP_THRESH,
            settings.STUFF_AREA_LIMIT,
            settings.INSTANCES_CONFIDENCE_THRESH,
        )
        found = measured(ids.numpy(), [self._info(info) for info in infos])
        return PanopticSegments(ids.numpy(), found, self.class_names, self.thing_count, image)

    def _info(self, info: dict[str, Any]) -> dict[str, Any]:
        # The semantic head's class 0 means any object.
        offset = 0 if info["isthing"] else self.thing_count - 1
        score = {"score": info["score"]} if info["isthing"] else {}
        return {"id": info["id"], "category_id": info["category_id"] + offset, "isthing": info["isthing"], **score}


def _set_threshold(cfg: CfgNode, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"score threshold {threshold}: expected a number from 0 to 1.")
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = threshold
    # The box head must not drop what the threshold keeps.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = min(threshold, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
