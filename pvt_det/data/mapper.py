"""Map a data set record of one image to the input of a Detectron2 model."""

from __future__ import annotations

from collections.abc import Sequence
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
from pvt_det.config.table import require_valid
from pvt_det.data.augmentation.mixing import Draw, Mixer
from pvt_det.data.augmentation.semantic import build_semantic_augmentations
from pvt_det.data.augmentation.transforms import build_detection_augmentations, crops
from pvt_det.data.images import check_size, read_image
from pvt_det.data.segmentation.folders import LabelMaps
from pvt_det.data.targets import Labelled, Mask, Targets, pack_targets
from pvt_det.errors import ConfigError, DataError
from pvt_det.structures import rle
from pvt_det.utils.rng import sample_random_state

# Mixing draws from a generator seeded with (seed, position of the sample, this number).
_MIXING = 1


def build_mixer(cfg: CfgNode) -> Mixer | None:
    """Build the mosaic and copy-paste augmentation of a config.

    Args:
        cfg: Config, of which `INPUT.MOSAIC`, `INPUT.COPY_PASTE` and `MODEL.PIXEL_MEAN` are read.

    Returns:
        The mixer, or None if both probabilities are 0.
    """
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
    """Build the augmentations of a config for its kind of model, a detector or a semantic segmentation model.

    Args:
        cfg: Config, of which INPUT and MODEL are read.
        is_train: Whether to build the augmentations for training. If False, those for evaluation are built.

    Returns:
        The augmentations, in the order in which they are applied.

    Raises:
        ConfigError: An INPUT key has an unknown value.
    """
    return (build_semantic_augmentations if is_segmentor(cfg) else build_detection_augmentations)(
        cfg, is_train=is_train
    )


class PVTDatasetMapper:
    """Read and augment one image with its objects, and convert it to the input of a Detectron2 model.

    It replaces Detectron2's `DatasetMapper` and differs in these points:

    - The randomness of a sample can depend only on the seed and its position in the training stream.
    - Images are read with `pvt_det.data.images`, which has clear errors for broken files.
    - Run-length masks and polygons can be mixed.
    - All objects of an image are transformed at once.

    Args:
        is_train: Whether to return "instances" for training. If False, annotations are dropped.
        augmentations: Augmentations, applied in this order.
        image_format: Channel order of the image: "RGB" or "BGR", as in `MODEL.PIXEL_MEAN`.
        masks: Whether the instances have `gt_masks`.
        mask_format: Format of `gt_masks`: "polygon" or "bitmask". With run-length masks, "bitmask" is always used.
        tighten_boxes: Whether to recompute the boxes from the masks, for augmentations that crop. Requires `masks`.
        labels: Reads the label map in the record's `sem_seg_file_name`. None if the model does not use label maps.
        mixer: Mixes the image with other images before the augmentations. None disables mixing.
        seed: Seed that, together with a sample's position, determines its randomness; 0 or greater.
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
    def from_config(
        cls, cfg: CfgNode, *, is_train: bool = True, seed: int = 0, before: Sequence[T.Augmentation] = ()
    ) -> dict[str, Any]:
        """Return the constructor's arguments for a config.

        Args:
            cfg: Config, of which INPUT and MODEL are read.
            is_train: Whether the mapper is for training.
            seed: Seed that, together with a sample's position, determines its randomness; 0 or greater. It is not read
                from `cfg`, because for SEED -1 all processes must share the seed that is drawn.
            before: Augmentations to apply before those of the config.

        Returns:
            The keyword arguments of the constructor.

        Raises:
            ConfigError: The config enables keypoints or precomputed proposals, or has an unknown INPUT value.
        """
        for key, enabled in (
            ("MODEL.KEYPOINT_ON", cfg.MODEL.KEYPOINT_ON),
            ("MODEL.LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS),
        ):
            if enabled:
                raise ConfigError(
                    f"{key} is True, but this package's data loading does not support it. Set it to False."
                )
        require_valid("INPUT.FORMAT", cfg.INPUT.FORMAT)
        return {
            "is_train": is_train,
            "augmentations": [*before, *build_augmentations(cfg, is_train=is_train)],
            "image_format": cfg.INPUT.FORMAT,
            "masks": is_train and cfg.MODEL.MASK_ON,
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "tighten_boxes": is_train and cfg.MODEL.MASK_ON and crops(cfg),
            "labels": LabelMaps.from_config(cfg),
            "mixer": build_mixer(cfg) if is_train else None,
            "seed": seed,
        }

    def read(self, record: dict[str, Any]) -> Labelled:
        """Read the image and the objects of a record without augmentation, for mixing into another image.

        Args:
            record: Detectron2 record with `file_name`, `height`, `width`, and `annotations` or packed `targets`.

        Returns:
            The image with its objects.

        Raises:
            DataError: The image cannot be read, or its size differs from the record's.
        """
        image = read_image(record["file_name"], self.image_format)
        check_size(record["file_name"], (image.shape[1], image.shape[0]), (record["width"], record["height"]))
        return Labelled(image, self._targets(record))

    def __call__(self, record: dict[str, Any], position: int | None = None, draw: Draw | None = None) -> dict[str, Any]:
        """Map one record.

        Args:
            record: Detectron2 record with `file_name`, `height`, `width`, `image_id`, and `annotations` or packed
                `targets`.
            position: 0-based position in the training stream. If given, the augmentation depends only on it and the
                seed.
            draw: Function that draws another image to mix with this one. Requires `position`.

        Returns:
            A copy of the record without annotations and with `image` (`3×H×W` uint8). In training it also has
            `instances` and, for models with label maps, `sem_seg` (`H×W` int64). In evaluation it has `true_labels`
            (`H×W` uint8, in the size of the file) if the record has a label map.

        Raises:
            DataError: The image or label map cannot be read, or its size differs from the record's.
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
        with nullcontext() if position is None else sample_random_state(self.seed, position):
            transforms = self.augmentations(aug_input)
        image = aug_input.image
        # torch accepts a channels-last view, but not negative strides (from a flip, or BGR from RGB).
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
        """Return the packed objects of a record."""
        packed = record.get("targets")
        return pack_targets(record["annotations"], masks=self.masks) if packed is None else packed

    def _labels(self, record: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
        """Read the label map of a record, or return None if the model or an evaluation record has none."""
        if self.labels is None or (not self.is_train and "sem_seg_file_name" not in record):
            return None
        if "sem_seg_file_name" not in record:
            raise DataError(f"image {record['file_name']}: its record has no `sem_seg_file_name`, needed for training")
        return self.labels.read(record["sem_seg_file_name"], size)

    def _instances(self, targets: Targets, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
        """Transform the objects and convert them to Detectron2's `Instances`."""
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
        """Transform the masks; polygons stay polygons if all masks are and `mask_format` allows it."""
        # `apply_polygons` would clip polygons at the edges of a crop. Rasterizing them does that anyway.
        polygons = [polygon for mask in masks if not isinstance(mask, dict) for polygon in mask]
        transformed = iter(_transform_polygons(polygons, transforms))
        moved: list[list[npt.NDArray] | npt.NDArray] = []
        for mask in masks:
            if isinstance(mask, dict):
                moved.append(transforms.apply_segmentation(rle.decode(mask)))
            else:
                moved.append([next(transformed) for _ in mask])
        polygons_only = all(isinstance(mask, list) for mask in moved)
        if polygons_only and self.mask_format == "polygon" and not self.tighten_boxes:
            return PolygonMasks(moved)
        filled = [polygons_to_bitmask(m, *size) if isinstance(m, list) else m.astype(bool) for m in moved]
        return BitMasks(torch.from_numpy(np.stack(filled)))


def _transform_polygons(polygons: list[npt.NDArray], transforms: T.TransformList) -> list[npt.NDArray]:
    """Transform all polygons of an image together, which is faster than one by one."""
    if not polygons:
        return []
    points = transforms.apply_coords(np.concatenate(polygons).reshape(-1, 2).astype(np.float64)).reshape(-1)
    return np.split(points, np.cumsum([len(polygon) for polygon in polygons])[:-1])
