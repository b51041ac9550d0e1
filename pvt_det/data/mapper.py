"""From a data set's record of one image to what a Detectron2 model takes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, polygons_to_bitmask

from pvt_det.config.architecture import is_segmentor
from pvt_det.config.choices import require_choice
from pvt_det.data.augmentation.mixing import Draw, Mixer
from pvt_det.data.augmentation.semantic import build_semantic_augmentations
from pvt_det.data.augmentation.transforms import build_detection_augmentations, crops, numpy_random
from pvt_det.data.images import check_size, read_image
from pvt_det.data.segmentation.folders import LabelMaps
from pvt_det.data.targets import Labelled, Mask, Targets, pack_targets
from pvt_det.errors import ConfigError, DataError
from pvt_det.structures import rle

# With the seed and a sample's position the key of how it is mixed with others.
_MIXING = 1


def mixer_of(cfg: CfgNode) -> Mixer | None:
    """What `INPUT.MOSAIC` and `INPUT.COPY_PASTE` ask for; None for nothing."""
    mosaic, copy_paste = cfg.INPUT.MOSAIC, cfg.INPUT.COPY_PASTE
    if not mosaic.PROBABILITY and not copy_paste.PROBABILITY:
        return None
    return Mixer(
        mosaic=mosaic.PROBABILITY,
        mosaic_scale=tuple(mosaic.SCALE),
        copy_paste=copy_paste.PROBABILITY,
        copy_paste_scale=tuple(copy_paste.SCALE),
        background=tuple(round(level) for level in cfg.MODEL.PIXEL_MEAN),
    )


def build_augmentations(cfg: CfgNode, *, is_train: bool) -> list[T.Augmentation]:
    """The augmentations of `cfg.INPUT`, in the order that suits the model.

    Raises:
        ConfigError: an INPUT key has an unknown value.
    """
    return (build_semantic_augmentations if is_segmentor(cfg) else build_detection_augmentations)(
        cfg, is_train=is_train
    )


class PVTDatasetMapper:
    """Read, augment and pack one image with its objects.

    As Detectron2's `DatasetMapper`, with these differences: a sample's randomness can follow its position in the
    training stream, images go through `pvt_det.data.images`, run-length masks work beside polygons, and all objects
    of an image are transformed at once.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation],
        image_format: str,
        masks: bool = False,
        mask_format: str = "polygon",
        tighten_boxes: bool = False,
        labels: LabelMaps | None = None,
        mixer: Mixer | None = None,
        seed: int = 0,
    ) -> None:
        """Make a mapper.

        Args:
            is_train: give "instances" for training; otherwise annotations are dropped.
            augmentations: applied in this order.
            image_format: "RGB" or "BGR", as `MODEL.PIXEL_MEAN`.
            masks: give `gt_masks`.
            mask_format: "polygon" or "bitmask"; an image with run-length masks gets bit masks in either case.
            tighten_boxes: after cropping, take boxes from the masks (needs `masks`).
            mixer: mixes an image with others first; None never does.
            labels: how to read the record's `sem_seg_file_name`; None where the model takes no label maps.
            seed: with a sample's position the key of its randomness; 0 or greater.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.masks = masks
        self.mask_format = mask_format
        self.tighten_boxes = tighten_boxes
        self.labels = labels
        self.mixer = mixer
        self.seed = seed

    @classmethod
    def from_config(cls, cfg: CfgNode, *, is_train: bool = True, seed: int = 0) -> dict[str, Any]:
        """Read INPUT, MODEL.MASK_ON; the seed is the caller's, since SEED -1 must first be drawn for all processes.

        Raises:
            ConfigError: key points, precomputed proposals or an unknown INPUT value are asked for.
        """
        for key, asked in (
            ("MODEL.KEYPOINT_ON", cfg.MODEL.KEYPOINT_ON),
            ("MODEL.LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS),
        ):
            if asked:
                raise ConfigError(f"{key} is True, but this package's data loading has no such input: set it to False")
        require_choice("INPUT.FORMAT", cfg.INPUT.FORMAT)
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train=is_train),
            "image_format": cfg.INPUT.FORMAT,
            "masks": is_train and cfg.MODEL.MASK_ON,
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "tighten_boxes": is_train and cfg.MODEL.MASK_ON and crops(cfg),
            "labels": LabelMaps.from_config(cfg),
            "mixer": mixer_of(cfg) if is_train else None,
            "seed": seed,
        }

    def read(self, record: dict[str, Any]) -> Labelled:
        """Read the image of a record, as a partner for another to be mixed with.

        Raises:
            DataError: as `__call__`.
        """
        image = read_image(record["file_name"], self.image_format)
        check_size(record["file_name"], (image.shape[1], image.shape[0]), (record["width"], record["height"]))
        return Labelled(image, self._targets(record))

    def __call__(self, record: dict[str, Any], position: int | None = None, draw: Draw | None = None) -> dict[str, Any]:
        """Map one record.

        Args:
            record: a Detectron2 record (`file_name`, `height`, `width`, `image_id`, `annotations`), or one whose
                annotations were packed into `targets`.
            position: place in the training stream; the augmentation then depends on the seed and it alone.
            draw: gives other images to mix this one with; needs a position.

        Returns:
            The record with `image` (`3×H×W` uint8), without its annotations. In training it has `instances` and, with
            label maps, `sem_seg` (`H×W` int64); otherwise, with label maps, `true_labels` (uint8, at the file's size).

        Raises:
            DataError: the image or label map cannot be read, or its size is not the record's.
        """
        image = read_image(record["file_name"], self.image_format)
        height, width = image.shape[:2]
        record = {"width": width, "height": height} | record
        check_size(record["file_name"], (width, height), (record["width"], record["height"]))
        labels = self._labels(record, (width, height))
        targets = self._targets(record) if self.is_train and ("targets" in record or "annotations" in record) else None
        if self.mixer is not None and targets is not None and draw is not None and position is not None:
            generator = np.random.default_rng((self.seed, position, _MIXING))
            mixed = self.mixer(Labelled(image, targets), generator, draw)
            image, targets = mixed.image, mixed.targets
        aug_input = T.AugInput(image, sem_seg=labels if self.is_train else None)
        with nullcontext() if position is None else numpy_random(self.seed, position):
            transforms = self.augmentations(aug_input)
        image = aug_input.image
        # A channels-last view is fine for torch, but it cannot read backwards (a flip, or BGR from RGB).
        if min(image.strides) < 0:
            image = np.ascontiguousarray(image)
        record["image"] = torch.as_tensor(image.transpose(2, 0, 1))
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        elif labels is not None:
            record["true_labels"] = labels
        for key in ("annotations", "targets"):
            record.pop(key, None)
        if targets is not None:
            record["instances"] = self._instances(targets, transforms, (int(image.shape[0]), int(image.shape[1])))
        return record

    def _targets(self, record: dict[str, Any]) -> Targets:
        packed = record.get("targets")
        return pack_targets(record["annotations"], masks=self.masks) if packed is None else packed

    def _labels(self, record: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
        if self.labels is None or (not self.is_train and "sem_seg_file_name" not in record):
            return None
        if "sem_seg_file_name" not in record:
            raise DataError(f"image {record['file_name']}: its data set gives no `sem_seg_file_name` to train on")
        return self.labels.read(record["sem_seg_file_name"], size)

    def _instances(self, targets: Targets, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
        instances = Instances(size)
        boxes = transforms.apply_box(targets.boxes)
        boxes = boxes.clip(min=0, max=np.array([size[1], size[0]] * 2))
        instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
        instances.gt_classes = torch.as_tensor(targets.classes)
        if self.masks and targets.masks:
            instances.gt_masks = self._transform_masks(targets.masks, transforms, size)
            if self.tighten_boxes:
                instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        return detection_utils.filter_empty_instances(instances)

    def _transform_masks(
        self, masks: list[Mask], transforms: T.TransformList, size: tuple[int, int]
    ) -> PolygonMasks | BitMasks:
        moved: list[list[npt.NDArray] | npt.NDArray] = []
        for mask in masks:
            if isinstance(mask, dict):
                moved.append(transforms.apply_segmentation(rle.decode(mask)))
            else:
                # Not `apply_polygons`: it would cut polygons at a crop's edge, which filling them does anyway.
                moved.append([transforms.apply_coords(p.reshape(-1, 2).astype(np.float64)).reshape(-1) for p in mask])
        polygons_only = all(isinstance(mask, list) for mask in moved)
        if polygons_only and self.mask_format == "polygon" and not self.tighten_boxes:
            return PolygonMasks(moved)
        filled = [polygons_to_bitmask(m, *size) if isinstance(m, list) else m.astype(bool) for m in moved]
        return BitMasks(torch.from_numpy(np.stack(filled)))
