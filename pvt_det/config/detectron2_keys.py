"""Detectron2's config keys that this package uses: their valid values, limits and meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pvt_det.config.architecture import is_multi_step
from pvt_det.config.rows import (
    BOX_WEIGHTS,
    CLASSES,
    COUNT,
    FLAG,
    MANY,
    NAMES,
    PIXELS,
    PROBABILITY,
    RATE,
    SHARE,
    SIDE,
    TEXT,
    WEIGHT,
    Limit,
    Row,
)
from pvt_det.config.rules import Rule, choice, in_order, integer, list_of, matching, number, only, or_null, text

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def is_device(name: str) -> bool:
    """Return whether PyTorch can compute on devices of this name.

    Args:
        name: Name of a device, such as "cpu" or "cuda:1".
    """
    import torch

    try:
        return torch.device(name).type != "meta"
    except RuntimeError:
        return False


# Rules that several keys share.
_CHANNELS = integer(1, 65_536)
_LAYERS = integer(0, 64)
_RESOLUTION = integer(1, 256)
_SAMPLING_RATIO = integer(0, 64)
_LIMIT = integer(1, 1_000_000)  # sides this long do not limit any image
_THRESHOLDS = list_of(SHARE, 1, order="ascending")
_LABELS = list_of(choice((-1, 0, 1)), 2)
_BOX_LOSS = choice(("smooth_l1", "giou", "diou", "ciou"))
_BETA = number(at_least=0, at_most=100)
_NORM = choice(("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N"))
_POOLER = choice(("ROIAlignV2", "ROIAlign", "ROIPool"))
# Detectron2's classes for rotated boxes, which this package's data and metrics do not support.
_ROTATED = ("RROIHeads", "RRPN", "RotatedAnchorGenerator")


def _registered(registry: str) -> Rule:
    """Return the rule of a name in one of Detectron2's registries."""

    def names() -> list[str]:
        # Imported here because `import pvt_det` fills the registries and may still be in progress.
        from detectron2 import modeling

        return [name for name, _ in getattr(modeling, registry) if name not in _ROTATED]

    return choice(names)


def _labels_of(thresholds: str) -> Limit:
    """Return the limit that makes labels fit their thresholds."""

    def holds(labels: Sequence[int], values: Sequence[float]) -> bool:
        return len(labels) == len(values) + 1 and labels[-1] == 1 and 1 not in labels[:-1] and 0 in labels

    return Limit(thresholds, holds, "0 or -1 for each threshold, at least one 0, and then 1, for")


def _has_schedule(*names: str) -> Callable[[CfgNode], bool]:
    return lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME in names


# Each section is a heading of the configuration reference.
DETECTRON2_KEYS: dict[str, list[Row]] = {
    "Detectron2's keys: run": [
        Row("VERSION", only(2, "This is Detectron2's config version."), "Version of Detectron2's config format."),
        Row(
            "OUTPUT_DIR",
            text(required=True),
            'Folder for everything that the run writes. "." in a config file is the folder of that file.',
        ),
        Row(
            "SEED",
            integer(-1, 2**32 - 2**16),
            "Seed of all random numbers of the run, plus the rank of the process. -1 draws one.",
        ),
        Row(
            "VIS_PERIOD",
            integer(0, MANY),
            "Number of iterations between two pictures of predictions in TensorBoard, in training; 0 draws none.",
        ),
    ],
    "Detectron2's keys: model": [
        Row("MODEL.META_ARCHITECTURE", _registered("META_ARCH_REGISTRY"), "Class of the model."),
        Row(
            "MODEL.DEVICE",
            matching(is_device, "cpu, cuda, mps, or a GPU by its index, such as cuda:1"),
            "Device to compute on. The default is a GPU if there is one.",
        ),
        Row(
            "MODEL.WEIGHTS",
            TEXT,
            "Weights to start from or to evaluate: a file, an address, or a name such as pvt://pvt_tiny.",
        ),
        Row("MODEL.MASK_ON", FLAG, "Whether to train and predict masks."),
        Row(
            "MODEL.KEYPOINT_ON",
            only(False, "This package does not support keypoints."),
            "Whether to predict keypoints, which is not supported.",
        ),
        Row(
            "MODEL.LOAD_PROPOSALS",
            only(False, "This package does not support precomputed proposals."),
            "Whether to read proposals from files, which is not supported.",
        ),
        Row(
            "MODEL.PIXEL_MEAN",
            list_of(number(at_least=0, at_most=255), length=3),
            "Mean of the pixels of each channel, in the order of INPUT.FORMAT.",
        ),
        Row(
            "MODEL.PIXEL_STD",
            list_of(number(above=0, at_most=255), length=3),
            "Number that divides the pixels of each channel, in the order of INPUT.FORMAT.",
        ),
        Row("MODEL.BACKBONE.NAME", _registered("BACKBONE_REGISTRY"), "Function that builds the backbone."),
        Row(
            "MODEL.BACKBONE.FREEZE_AT",
            integer(0, 5),
            "Number of parts of a ResNet to freeze, from the stem on. PVT uses MODEL.PVT.FROZEN_STAGES.",
        ),
        Row(
            "MODEL.FPN.IN_FEATURES",
            NAMES,
            "Feature maps of the trunk that the FPN uses: neighbors up to the last stage, in order.",
        ),
        Row("MODEL.FPN.OUT_CHANNELS", _CHANNELS, "Channels of the FPN's feature maps."),
        Row("MODEL.FPN.NORM", _NORM, "Normalization in the FPN."),
        Row("MODEL.FPN.FUSE_TYPE", choice(("sum", "avg")), "How the FPN merges two levels."),
        Row("MODEL.RESNETS.DEPTH", choice((18, 34, 50, 101, 152)), "Number of layers of a ResNet."),
        Row(
            "MODEL.RESNETS.OUT_FEATURES",
            in_order(("stem", "res2", "res3", "res4", "res5")),
            "Feature maps that a ResNet returns.",
        ),
        Row("MODEL.RESNETS.NUM_GROUPS", integer(1, 1024), "Groups of a ResNeXt's convolutions; 1 is a ResNet."),
        Row("MODEL.RESNETS.NORM", _NORM, "Normalization in a ResNet."),
        Row("MODEL.RESNETS.WIDTH_PER_GROUP", _CHANNELS, "Channels of each group in the bottlenecks of res2."),
        Row(
            "MODEL.RESNETS.STRIDE_IN_1X1",
            FLAG,
            "Whether bottlenecks have their stride in the first convolution (MSRA) or the second (torchvision).",
        ),
        Row("MODEL.RESNETS.RES5_DILATION", choice((1, 2)), "Dilation in res5. With 2, its stride is 16."),
        Row("MODEL.RESNETS.RES2_OUT_CHANNELS", _CHANNELS, "Channels of res2: 64 for ResNet-18 and 34, otherwise 256."),
        Row("MODEL.RESNETS.STEM_OUT_CHANNELS", _CHANNELS, "Channels of a ResNet's stem."),
        Row(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
            list_of(FLAG, length=4),
            "Whether res2, res3, res4 and res5 have deformable convolutions, which need a GPU.",
        ),
        Row("MODEL.RESNETS.DEFORM_MODULATED", FLAG, "Whether deformable convolutions are modulated (version 2)."),
        Row("MODEL.RESNETS.DEFORM_NUM_GROUPS", integer(1, 1024), "Groups of deformable convolutions."),
        Row(
            "MODEL.ANCHOR_GENERATOR.NAME", _registered("ANCHOR_GENERATOR_REGISTRY"), "Class that generates the anchors."
        ),
        Row(
            "MODEL.ANCHOR_GENERATOR.SIZES",
            list_of(list_of(number(above=0, at_most=SIDE), 1), 1),
            "Sides in pixels of square anchors: one list for each level, or one for all levels.",
        ),
        Row(
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
            list_of(list_of(number(above=0, at_most=1000), 1), 1),
            "Height divided by width of the anchors: one list for each level, or one for all levels.",
        ),
        Row(
            "MODEL.ANCHOR_GENERATOR.OFFSET",
            RATE,
            "Position of the first anchor's center, as a fraction of the stride.",
        ),
    ],
    "Detectron2's keys: RetinaNet": [
        Row("MODEL.RETINANET.NUM_CLASSES", CLASSES, "Number of classes. Training sets it from the data's classes."),
        Row("MODEL.RETINANET.IN_FEATURES", NAMES, "Feature maps with anchors, from fine to coarse."),
        Row(
            "MODEL.RETINANET.NUM_CONVS", integer(1, 64), "Convolutions of each branch of the head, before the last one."
        ),
        Row("MODEL.RETINANET.NORM", _NORM, "Normalization in the head."),
        Row(
            "MODEL.RETINANET.IOU_THRESHOLDS",
            _THRESHOLDS,
            "IoU with a box at which the label of an anchor changes.",
        ),
        Row(
            "MODEL.RETINANET.IOU_LABELS",
            _LABELS,
            "Label of the anchors between two thresholds: 0 background, -1 ignored, 1 object.",
            limit=_labels_of("MODEL.RETINANET.IOU_THRESHOLDS"),
        ),
        Row(
            "MODEL.RETINANET.PRIOR_PROB",
            number(above=0, below=1),
            "Score of all anchors at the start of training.",
        ),
        Row("MODEL.RETINANET.BBOX_REG_WEIGHTS", BOX_WEIGHTS, "Factors of the box offsets dx, dy, dw and dh."),
        Row("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", _BOX_LOSS, "Loss of the box offsets."),
        Row("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", _BETA, "Beta of the smooth L1 loss; 0 is the L1 loss."),
        Row("MODEL.RETINANET.FOCAL_LOSS_GAMMA", number(at_least=0, at_most=10), "Exponent of the focal loss."),
        Row(
            "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
            number(above=0, below=1),
            "Weight of objects in the focal loss. The weight of the background is 1 - alpha.",
        ),
        Row("MODEL.RETINANET.SCORE_THRESH_TEST", RATE, "Smallest score of a detection."),
        Row("MODEL.RETINANET.TOPK_CANDIDATES_TEST", COUNT, "Best candidates of each level that enter NMS."),
        Row("MODEL.RETINANET.NMS_THRESH_TEST", SHARE, "IoU above which NMS removes the lower score; 1 removes none."),
    ],
    "Detectron2's keys: R-CNN": [
        Row(
            "MODEL.PROPOSAL_GENERATOR.NAME",
            _registered("PROPOSAL_GENERATOR_REGISTRY"),
            "Class that proposes boxes.",
        ),
        Row("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", integer(0, SIDE), "Smallest side of a proposal in pixels."),
        Row("MODEL.RPN.HEAD_NAME", _registered("RPN_HEAD_REGISTRY"), "Class of the RPN's head."),
        Row("MODEL.RPN.IN_FEATURES", NAMES, "Feature maps with anchors, from fine to coarse."),
        Row(
            "MODEL.RPN.CONV_DIMS",
            list_of(integer(1, 65_536, or_minus_one=True), 1),
            "Channels of the RPN's convolutions; -1 keeps the number of channels.",
        ),
        Row("MODEL.RPN.IOU_THRESHOLDS", _THRESHOLDS, "IoU with a box at which the label of an anchor changes."),
        Row(
            "MODEL.RPN.IOU_LABELS",
            _LABELS,
            "Label of the anchors between two thresholds: 0 background, -1 ignored, 1 object.",
            limit=_labels_of("MODEL.RPN.IOU_THRESHOLDS"),
        ),
        Row(
            "MODEL.RPN.BOUNDARY_THRESH",
            integer(0, SIDE, or_minus_one=True),
            "Pixels by which an anchor may cross the image's boundary without being ignored in training; -1 ignores "
            "none.",
        ),
        Row("MODEL.RPN.BATCH_SIZE_PER_IMAGE", COUNT, "Anchors of an image that the RPN's loss samples."),
        Row("MODEL.RPN.POSITIVE_FRACTION", SHARE, "Largest share of objects among these anchors."),
        Row("MODEL.RPN.BBOX_REG_LOSS_TYPE", _BOX_LOSS, "Loss of the box offsets."),
        Row("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", WEIGHT, "Weight of the RPN's box loss."),
        Row("MODEL.RPN.BBOX_REG_WEIGHTS", BOX_WEIGHTS, "Factors of the box offsets dx, dy, dw and dh."),
        Row("MODEL.RPN.SMOOTH_L1_BETA", _BETA, "Beta of the smooth L1 loss; 0 is the L1 loss."),
        Row("MODEL.RPN.LOSS_WEIGHT", WEIGHT, "Weight of both losses of the RPN."),
        Row("MODEL.RPN.PRE_NMS_TOPK_TRAIN", COUNT, "Best anchors of each level that enter NMS in training."),
        Row("MODEL.RPN.PRE_NMS_TOPK_TEST", COUNT, "Best anchors of each level that enter NMS in tests."),
        Row("MODEL.RPN.POST_NMS_TOPK_TRAIN", COUNT, "Proposals of an image in training."),
        Row("MODEL.RPN.POST_NMS_TOPK_TEST", COUNT, "Proposals of an image in tests."),
        Row("MODEL.RPN.NMS_THRESH", SHARE, "IoU above which NMS removes the lower score; 1 removes none."),
        Row("MODEL.ROI_HEADS.NAME", _registered("ROI_HEADS_REGISTRY"), "Class of the heads."),
        Row("MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "Number of classes. Training sets it from the data's classes."),
        Row("MODEL.ROI_HEADS.IN_FEATURES", NAMES, "Feature maps that proposals are pooled from, from fine to coarse."),
        Row(
            "MODEL.ROI_HEADS.IOU_THRESHOLDS",
            _THRESHOLDS,
            "IoU with a box at which the label of a proposal changes.",
        ),
        Row(
            "MODEL.ROI_HEADS.IOU_LABELS",
            _LABELS,
            "Label of the proposals between two thresholds: 0 background, -1 ignored, 1 object.",
            limit=_labels_of("MODEL.ROI_HEADS.IOU_THRESHOLDS"),
        ),
        Row("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", COUNT, "Proposals of an image that the losses sample."),
        Row("MODEL.ROI_HEADS.POSITIVE_FRACTION", SHARE, "Largest share of objects among these proposals."),
        Row("MODEL.ROI_HEADS.SCORE_THRESH_TEST", RATE, "Smallest score of a detection."),
        Row("MODEL.ROI_HEADS.NMS_THRESH_TEST", SHARE, "IoU above which NMS removes the lower score; 1 removes none."),
        Row(
            "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", FLAG, "Whether the ground-truth boxes are proposals too in training."
        ),
        Row(
            "MODEL.ROI_BOX_HEAD.NAME",
            choice(lambda: [*_registered("ROI_BOX_HEAD_REGISTRY").choices(), ""]),
            "Class of the box head; '' for heads without one.",
        ),
        Row("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", _BOX_LOSS, "Loss of the box offsets."),
        Row("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", WEIGHT, "Weight of the box loss."),
        Row("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", BOX_WEIGHTS, "Factors of the box offsets dx, dy, dw and dh."),
        Row("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", _BETA, "Beta of the smooth L1 loss; 0 is the L1 loss."),
        Row("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", _RESOLUTION, "Height and width of a pooled proposal."),
        Row(
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
            _SAMPLING_RATIO,
            "Samples per side of each pooled cell; 0 adapts the number to the size of the proposal.",
        ),
        Row("MODEL.ROI_BOX_HEAD.POOLER_TYPE", _POOLER, "How proposals are pooled."),
        Row("MODEL.ROI_BOX_HEAD.NUM_FC", _LAYERS, "Fully connected layers of the box head."),
        Row("MODEL.ROI_BOX_HEAD.FC_DIM", _CHANNELS, "Channels of the fully connected layers."),
        Row("MODEL.ROI_BOX_HEAD.NUM_CONV", _LAYERS, "Convolutions of the box head, before the fully connected layers."),
        Row("MODEL.ROI_BOX_HEAD.CONV_DIM", _CHANNELS, "Channels of the box head's convolutions."),
        Row("MODEL.ROI_BOX_HEAD.NORM", _NORM, "Normalization after the box head's convolutions."),
        Row("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", FLAG, "Whether all classes share the predicted box."),
        Row(
            "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES",
            FLAG,
            "Whether the mask head is trained on the predicted boxes instead of the proposals.",
        ),
        Row(
            "MODEL.ROI_BOX_HEAD.USE_FED_LOSS",
            only(False, "The federated loss needs the class frequencies of LVIS, which this package does not read."),
            "Whether to use the federated loss of LVIS, which is not supported.",
        ),
        Row(
            "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
            FLAG,
            "Whether the class loss is a binary cross entropy for each class instead of a softmax.",
        ),
        Row(
            "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
            list_of(number(above=0, at_most=1), 1, order="ascending"),
            "IoU threshold of each stage of Cascade R-CNN. The first one equals MODEL.ROI_HEADS.IOU_THRESHOLDS.",
        ),
        Row(
            "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS",
            list_of(BOX_WEIGHTS, 1),
            "Factors of the box offsets of each stage of Cascade R-CNN.",
            limit=Limit(
                "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
                lambda weights, ious: len(weights) == len(ious),
                "one list for each value of",
            ),
        ),
        Row("MODEL.ROI_MASK_HEAD.NAME", _registered("ROI_MASK_HEAD_REGISTRY"), "Class of the mask head."),
        Row("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", _RESOLUTION, "Height and width of a pooled object."),
        Row(
            "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO",
            _SAMPLING_RATIO,
            "Samples per side of each pooled cell; 0 adapts the number to the size of the object.",
        ),
        Row("MODEL.ROI_MASK_HEAD.POOLER_TYPE", _POOLER, "How objects are pooled."),
        Row("MODEL.ROI_MASK_HEAD.NUM_CONV", _LAYERS, "Convolutions of the mask head, before its upsampling."),
        Row("MODEL.ROI_MASK_HEAD.CONV_DIM", _CHANNELS, "Channels of the mask head's convolutions."),
        Row("MODEL.ROI_MASK_HEAD.NORM", _NORM, "Normalization after the mask head's convolutions."),
        Row("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", FLAG, "Whether all classes share the predicted mask."),
    ],
    "Detectron2's keys: segmentation": [
        Row("MODEL.SEM_SEG_HEAD.NAME", _registered("SEM_SEG_HEADS_REGISTRY"), "Class of the semantic head."),
        Row("MODEL.SEM_SEG_HEAD.IN_FEATURES", NAMES, "Feature maps of the semantic head, from fine to coarse."),
        Row("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", integer(0, 255), "Value of the pixels without a class in label maps."),
        Row(
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            integer(1, 256),
            "Number of classes of the label maps. Training sets the default to the number of DATASETS.LABEL_NAMES.",
        ),
        Row("MODEL.SEM_SEG_HEAD.CONVS_DIM", _CHANNELS, "Channels of the semantic head's convolutions."),
        Row(
            "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
            choice((1, 2, 4, 8, 16, 32)),
            "Stride to which all feature maps are scaled, not above that of the finest one.",
        ),
        Row("MODEL.SEM_SEG_HEAD.NORM", _NORM, "Normalization in the semantic head."),
        Row("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", WEIGHT, "Weight of the semantic loss."),
        Row("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", WEIGHT, "Weight of Panoptic FPN's box, class and mask losses."),
        Row("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", FLAG, "Not used any more."),
        Row(
            "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
            PROBABILITY,
            "Share of an object that may be covered by better ones before Panoptic FPN drops it.",
        ),
        Row(
            "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
            integer(0, MANY),
            "Smallest area in pixels of a stuff class that Panoptic FPN keeps.",
        ),
        Row(
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
            PROBABILITY,
            "Smallest score of an object that Panoptic FPN keeps.",
        ),
    ],
    "Detectron2's keys: input and data": [
        Row(
            "INPUT.MIN_SIZE_TRAIN",
            list_of(PIXELS, 1),
            "Short sides of training images in pixels, of which one is drawn for each image. Minimum and maximum if "
            "MIN_SIZE_TRAIN_SAMPLING is range.",
        ),
        Row("INPUT.MIN_SIZE_TRAIN_SAMPLING", choice(("choice", "range")), "How a short side is drawn."),
        Row("INPUT.MAX_SIZE_TRAIN", _LIMIT, "Longest side of training images in pixels."),
        Row("INPUT.MIN_SIZE_TEST", integer(0, SIDE), "Short side of test images in pixels; 0 keeps their size."),
        Row("INPUT.MAX_SIZE_TEST", _LIMIT, "Longest side of test images in pixels."),
        Row("INPUT.RANDOM_FLIP", choice(("horizontal", "vertical", "none")), "Direction of random flips in training."),
        Row("INPUT.CROP.ENABLED", FLAG, "Whether training images are cropped."),
        Row(
            "INPUT.CROP.TYPE",
            choice(("relative_range", "relative", "absolute", "absolute_range")),
            "Unit of INPUT.CROP.SIZE: fractions of the sides or pixels, and whether they are limits of a random size.",
        ),
        Row(
            "INPUT.CROP.SIZE",
            list_of(number(above=0, at_most=SIDE), length=2),
            "Height and width of the crop. For absolute_range, its minimum and maximum side.",
        ),
        Row("INPUT.FORMAT", choice(("RGB", "BGR")), "Order of the channels."),
        Row("INPUT.MASK_FORMAT", choice(("polygon", "bitmask")), "How masks are kept in training."),
        Row("DATASETS.TRAIN", NAMES, "Names of the registered data sets to train on."),
        Row("DATASETS.TEST", NAMES, "Names of the registered data sets to evaluate on."),
        Row(
            "DATALOADER.NUM_WORKERS",
            integer(0, 1024),
            "Processes that read images; with 0, the main process does. `predict` also has as many that write.",
        ),
        Row(
            "DATALOADER.ASPECT_RATIO_GROUPING",
            FLAG,
            "Whether a batch has only images that are wider than high, or only others, which saves padding.",
        ),
        Row(
            "DATALOADER.SAMPLER_TRAIN",
            choice(("TrainingSampler", "RepeatFactorTrainingSampler")),
            "How often images are drawn: all alike, or those with rare classes more often. The latter needs "
            "REPEAT_THRESHOLD.",
        ),
        Row(
            "DATALOADER.REPEAT_THRESHOLD",
            PROBABILITY,
            "Share of the images below which a class is rare for RepeatFactorTrainingSampler.",
        ),
        Row("DATALOADER.REPEAT_SQRT", FLAG, "Whether the factor for rare classes is the square root of their rarity."),
        Row("DATALOADER.FILTER_EMPTY_ANNOTATIONS", FLAG, "Whether images without an object are left out of training."),
    ],
    "Detectron2's keys: solver": [
        Row("SOLVER.IMS_PER_BATCH", COUNT, "Images per batch, over all processes."),
        Row(
            "SOLVER.REFERENCE_WORLD_SIZE",
            integer(0, 65_536),
            "Number of processes that the batch size and learning rate are meant for. They are scaled to the actual "
            "number; 0 does not scale them.",
            limit=Limit("SOLVER.IMS_PER_BATCH", lambda size, batch: not size or batch % size == 0, "0 or a divisor of"),
        ),
        Row("SOLVER.MAX_ITER", integer(1, MANY), "Number of iterations."),
        Row("SOLVER.CHECKPOINT_PERIOD", integer(1, MANY), "Iterations between two periodic checkpoints."),
        Row("SOLVER.BASE_LR", number(above=0, at_most=10), "Learning rate after the warm-up."),
        Row(
            "SOLVER.BASE_LR_END",
            number(at_least=0, at_most=10),
            "Learning rate at the end of WarmupCosineLR.",
            limit=Limit(
                "SOLVER.BASE_LR", lambda end, base: end <= base, "at most", applies=_has_schedule("WarmupCosineLR")
            ),
        ),
        Row(
            "SOLVER.LR_SCHEDULER_NAME",
            choice(("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR")),
            "Schedule of the learning rate.",
        ),
        Row(
            "SOLVER.STEPS",
            list_of(integer(1, MANY), order="strictly ascending"),
            "Iterations at which WarmupMultiStepLR multiplies the learning rate by GAMMA; [] keeps it constant.",
            limit=Limit(
                "SOLVER.MAX_ITER",
                lambda steps, end: all(step <= end for step in steps),
                "[] or iterations of at most",
                applies=is_multi_step,
                reason='A shorter run needs earlier ones, or SOLVER.STEPS "[]" for a constant learning rate.',
            ),
        ),
        Row("SOLVER.GAMMA", SHARE, "Factor of the learning rate at each of the STEPS."),
        Row(
            "SOLVER.NUM_DECAYS",
            integer(1, 1_000_000),
            "Number of times that WarmupStepWithFixedGammaLR multiplies the learning rate by GAMMA.",
            limit=Limit(
                "SOLVER.MAX_ITER",
                lambda decays, end: decays < end,
                "less than",
                applies=_has_schedule("WarmupStepWithFixedGammaLR"),
            ),
        ),
        Row(
            "SOLVER.WARMUP_ITERS",
            integer(0, MANY),
            "Iterations of the warm-up.",
            # The warm-up ends at the learning rate that the schedule has by then, which is near 0 at its end.
            limit=Limit(
                "SOLVER.MAX_ITER",
                lambda warmup, end: warmup < end,
                "less than",
                applies=lambda cfg: not is_multi_step(cfg) or len(cfg.SOLVER.STEPS) > 0,
                reason="The learning rate would stay near 0. A shorter run needs a shorter warm-up, such as a tenth of "
                "MAX_ITER. To change the length only, use --epochs (SOLVER.EPOCHS): it adapts the warm-up too.",
            ),
        ),
        Row("SOLVER.WARMUP_FACTOR", PROBABILITY, "Factor of the learning rate at the start of the warm-up."),
        Row(
            "SOLVER.WARMUP_METHOD",
            choice(("linear", "constant")),
            "Whether the factor rises to 1 during the warm-up, or stays constant until its end.",
        ),
        Row(
            "SOLVER.RESCALE_INTERVAL",
            FLAG,
            "Whether the schedule starts after the warm-up instead of at its beginning.",
        ),
        Row("SOLVER.MOMENTUM", RATE, "Momentum of sgd."),
        Row("SOLVER.NESTEROV", FLAG, "Whether sgd uses Nesterov momentum."),
        Row("SOLVER.WEIGHT_DECAY", PROBABILITY, "Weight decay."),
        Row("SOLVER.WEIGHT_DECAY_NORM", PROBABILITY, "Weight decay of normalization layers."),
        Row(
            "SOLVER.WEIGHT_DECAY_BIAS",
            or_null(PROBABILITY),
            "Weight decay of biases. With null, biases have that of all other parameters.",
        ),
        Row("SOLVER.BIAS_LR_FACTOR", number(above=0, at_most=100), "Factor of the learning rate of biases."),
        Row("SOLVER.CLIP_GRADIENTS.ENABLED", FLAG, "Whether gradients are clipped."),
        Row(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
            choice(("full_model", "norm", "value")),
            "What is clipped: the norm of all gradients together, the norm of each parameter's, or each element.",
        ),
        Row("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", number(above=0, at_most=100_000), "Largest norm or element."),
        Row(
            "SOLVER.CLIP_GRADIENTS.NORM_TYPE",
            number(at_least=1, at_most=100, or_infinity=True),
            "Order p of the norm.",
        ),
        Row("SOLVER.AMP.ENABLED", FLAG, "Whether training uses autocast."),
    ],
    "Detectron2's keys: evaluation": [
        Row("TEST.EVAL_PERIOD", integer(0, MANY), "Iterations between two evaluations; 0 evaluates only at the end."),
        Row("TEST.DETECTIONS_PER_IMAGE", integer(1, 100_000), "Most detections of an image."),
        Row("TEST.AUG.ENABLED", FLAG, "Whether to merge the detections of resized and flipped copies of an image."),
        Row("TEST.AUG.MIN_SIZES", list_of(PIXELS, 1), "Short sides of these copies in pixels."),
        Row("TEST.AUG.MAX_SIZE", _LIMIT, "Longest side of these copies in pixels."),
        Row("TEST.AUG.FLIP", FLAG, "Whether to add a flipped copy of each of them."),
        Row(
            "TEST.EXPECTED_RESULTS",
            only([], "This trainer does not compare results."),
            "Results that Detectron2's trainer compares with, which is not supported.",
        ),
        Row(
            "TEST.PRECISE_BN.ENABLED",
            only(False, "This trainer does not recompute the statistics of BatchNorms."),
            "Whether to recompute BatchNorm statistics before evaluation, which is not supported.",
        ),
    ],
}

# Keys of Detectron2 that no shipped config sets and this package never reads, by prefix, each with the reason.
NOT_OURS = {
    "MODEL.ROI_KEYPOINT_HEAD.": "MODEL.KEYPOINT_ON must be False.",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_": "MODEL.ROI_BOX_HEAD.USE_FED_LOSS must be False.",
    "MODEL.ANCHOR_GENERATOR.ANGLES": "Only anchors of rotated boxes have angles.",
    "DATASETS.PROPOSAL_FILES_": "MODEL.LOAD_PROPOSALS must be False.",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_": "MODEL.LOAD_PROPOSALS must be False.",
    "TEST.KEYPOINT_OKS_SIGMAS": "MODEL.KEYPOINT_ON must be False.",
    "TEST.PRECISE_BN.NUM_ITER": "TEST.PRECISE_BN.ENABLED must be False.",
    "CUDNN_BENCHMARK": "Only Detectron2's own training script reads it.",
    "GLOBAL.": "A place for experiments with Detectron2.",
}
