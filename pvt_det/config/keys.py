"""The config keys that this package adds to Detectron2's: defaults, valid values and meaning.

Only builders read the config (`from_config`, `build_*`), never a model's `forward`.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import TYPE_CHECKING

from pvt_det.config.dense_keys import ATSS_KEYS, GFL_KEYS
from pvt_det.config.logger_names import LOGGER_NAMES, is_logger_name
from pvt_det.config.query_keys import QUERY_KEYS
from pvt_det.config.rows import FLAG, MANY, NAMES, PATHS, PIXELS, PROBABILITY, RATE, SHARE, TEXT, WEIGHT, Limit, Row
from pvt_det.config.rules import Rule, choice, in_order, integer, list_of, matching, number
from pvt_det.models.variants import STAGES, list_models

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_SCALES = list_of(number(above=0, at_most=100), length=2, order="ascending")
_TASKS = ("bbox", "segm", "sem_seg", "panoptic_seg")


def _optimizers() -> tuple[str, ...]:
    from pvt_det.solver.build import OPTIMIZERS

    return OPTIMIZERS


def _precisions() -> tuple[str, ...]:
    from pvt_det.utils.precision import PRECISIONS

    return tuple(PRECISIONS)


def _is_metric(name: str) -> bool:
    task, _, metric = name.partition("/")
    return not name or (task in _TASKS and bool(metric))


def _loggers() -> Rule:
    names = list_of(matching(is_logger_name, LOGGER_NAMES))
    expected = f"a list of different {LOGGER_NAMES}"
    return Rule(
        lambda value: names.accepts(value) and len(set(value)) == len(value),
        lambda: (expected, expected),
        example=[""],
    )


def _weights() -> Rule:
    reason = "A data set without a share is left out of the list of data sets."
    return dataclasses.replace(list_of(number(above=0, at_most=100_000)), reason=reason)


# Each section is a heading of the configuration reference.
ADDED_KEYS: dict[str, list[Row]] = {
    "Trunk": [
        Row("MODEL.PVT.VARIANT", choice(list_models), "Variant of the PVT trunk.", "pvt_small"),
        Row(
            "MODEL.PVT.OUT_FEATURES",
            in_order(STAGES),
            "Feature maps that the backbone returns. Their strides are 4, 8, 16 and 32.",
            list(STAGES),
        ),
        Row(
            "MODEL.PVT.DROP_PATH_RATE",
            RATE,
            "Stochastic depth rate of the last block. The rate rises linearly from 0 in the first block.",
            0.1,
        ),
        Row(
            "MODEL.PVT.PRETRAIN_IMG_SIZE",
            integer(32, 4096, multiple_of=32),
            "Side of the square images in pretraining, in pixels. It sets the size of the position embeddings, which "
            "only PVT v1 has.",
            224,
        ),
        Row(
            "MODEL.PVT.EMBED_NORM_EPS",
            number(above=0, at_most=0.01),
            "Epsilon of the LayerNorms after patch embedding and spatial reduction. Use 1e-5 as in the published code, "
            "or 1e-6 for detectors that were trained with MMDetection's own PVT. All other LayerNorms use 1e-6.",
            1e-5,
        ),
        Row(
            "MODEL.PVT.FROZEN_STAGES",
            integer(0, 4),
            "Number of stages to freeze, from the first on. Frozen stages get no gradient and stay in evaluation mode.",
            0,
        ),
        Row(
            "MODEL.PVT.CHECKPOINT_STAGES",
            list_of(choice((1, 2, 3, 4))),
            "Stages whose activations are recomputed in the backward pass to save memory.",
            [],
        ),
        Row(
            "MODEL.PVT.COMPILE",
            choice(("", "default", "reduce-overhead")),
            'Mode of torch.compile for the trunk\'s stages on a GPU, or "" not to compile. One compiled program per '
            'stage serves all image sizes. "reduce-overhead" also replays CUDA graphs in inference, one graph per '
            "image size, and all calls must come from one thread. Ignored on a CPU, where the uncompiled trunk is "
            "faster. PVT v2 is compiled for inference only.",
            "",
        ),
    ],
    "Trunk of timm": [
        Row(
            "MODEL.TIMM.NAME",
            TEXT,
            "Name of a model of timm with feature maps of strides 4, 8, 16 and 32, for the backbones "
            "build_timm_backbone, build_timm_fpn_backbone and build_retinanet_timm_fpn_backbone.",
            "",
        ),
        Row(
            "MODEL.TIMM.OUT_FEATURES",
            in_order(STAGES),
            "Feature maps that the backbone returns. Their strides are 4, 8, 16 and 32.",
            list(STAGES),
        ),
        Row(
            "MODEL.TIMM.DROP_PATH_RATE",
            RATE,
            "Stochastic depth rate of the last block. The rate rises linearly from 0 in the first block.",
            0.0,
        ),
        Row(
            "MODEL.TIMM.FROZEN_STAGES",
            integer(0, 4),
            "Number of stages to freeze, from the first on. Frozen stages get no gradient and stay in evaluation mode.",
            0,
        ),
        Row(
            "MODEL.TIMM.OUTPUT_NORM",
            choice(("", "LN", "GN")),
            'Normalization of each returned feature map: "" for none, "LN" for a LayerNorm over the channels, as in '
            'the detectors of Swin and ConvNeXt, or "GN" for a GroupNorm with one group, as in those of PoolFormer. It '
            "is not part of pretrained weights.",
            "",
        ),
    ],
    "FPN and heads": [
        Row(
            "MODEL.FPN.P6_INPUT",
            choice(("backbone", "fpn")),
            "Where the FPN of a one-stage detector computes P6 from: the last feature map of the backbone, as in "
            "RetinaNet, or that of the FPN, as in ATSS and GFL.",
            "backbone",
        ),
        Row(
            "MODEL.FPN.P7_RELU",
            FLAG,
            "Whether the FPN of a one-stage detector has a ReLU between P6 and P7. Detectron2 has it; the published "
            "PVT detectors do not.",
            False,
        ),
        Row(
            "MODEL.RETINANET.LOSS_NORMALIZER",
            choice(("ema", "batch")),
            'Divisor of RetinaNet\'s losses: "ema" (Detectron2: a moving average of the number of positive anchors) or '
            '"batch" (MMDetection: the number of positive anchors in the current batch).',
            "ema",
        ),
        Row(
            "MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES",
            FLAG,
            "Whether to match the best proposal of each ground-truth box to that box, even if the proposal overlaps "
            "another box more. This is MMDetection's match_low_quality with min_pos_iou equal to the threshold, as in "
            "its Mask R-CNN. Needs a single value in MODEL.ROI_HEADS.IOU_THRESHOLDS. Cascade R-CNN does not support "
            "it.",
            False,
        ),
        Row(
            "MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS",
            list_of(WEIGHT, 1),
            "Weight of the losses of each stage of PVTCascadeROIHeads.",
            (1.0, 0.5, 0.25),
            limit=Limit(
                "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
                lambda weights, ious: len(weights) == len(ious),
                "one value for each value of",
            ),
        ),
        Row(
            "MODEL.SEM_SEG_HEAD.DROPOUT",
            RATE,
            "Dropout rate of the channels before the semantic head's classifier.",
            0.0,
        ),
        Row(
            "MODEL.SEM_SEG_HEAD.LOSS_AVERAGE",
            choice(("valid", "all")),
            'Pixels that the semantic loss is averaged over: "valid" (Detectron2: labeled pixels) or "all" '
            "(MMSegmentation 0.x: ignored and padded pixels too).",
            "valid",
        ),
    ],
    "ATSS": ATSS_KEYS,
    "GFL": GFL_KEYS,
    **QUERY_KEYS,
    "Input": [
        Row(
            "INPUT.RESIZE_BACKEND",
            choice(("pil", "cv2")),
            'Library that resizes images: "pil" (Detectron2: anti-aliased) or "cv2" (MMDetection: plain bilinear).',
            "pil",
        ),
        Row(
            "INPUT.CROP_BRANCH.ENABLED",
            FLAG,
            "Whether half of the training images are resized and cropped before the usual resizing, as in DETR and in "
            "PVT v2's 3x recipe. Detectors only.",
            False,
        ),
        Row(
            "INPUT.CROP_BRANCH.RESIZE",
            list_of(PIXELS, 1),
            "Sizes of the short side in pixels before the crop. One is drawn for each image.",
            (400, 500, 600),
        ),
        Row(
            "INPUT.CROP_BRANCH.SIZE",
            list_of(PIXELS, length=2, order="ascending"),
            "Minimum and maximum side of the random crop in pixels.",
            (384, 600),
        ),
        Row(
            "INPUT.LARGE_SCALE_JITTER.ENABLED",
            FLAG,
            "Whether large-scale jitter replaces resizing to MIN_SIZE_TRAIN: it scales each training image by a random "
            "factor, then crops or pads it to a fixed size. Detectors only.",
            False,
        ),
        Row(
            "INPUT.LARGE_SCALE_JITTER.SCALE",
            _SCALES,
            "Minimum and maximum scale factor, relative to the image fitted into SIZE. (0.1, 2.0) suits long "
            "schedules; (0.8, 1.25) is called standard jitter.",
            (0.1, 2.0),
        ),
        Row(
            "INPUT.LARGE_SCALE_JITTER.SIZE",
            list_of(PIXELS, length=2),
            "Height and width in pixels of the images after large-scale jitter.",
            (1024, 1024),
        ),
        Row(
            "INPUT.MOSAIC.PROBABILITY",
            PROBABILITY,
            "Probability that a training image is a mosaic of four images. Detectors only.",
            0.0,
        ),
        Row(
            "INPUT.MOSAIC.SCALE",
            _SCALES,
            "Minimum and maximum scale of the four images, relative to fitting them into the size of the first one.",
            (0.5, 1.5),
        ),
        Row(
            "INPUT.COPY_PASTE.PROBABILITY",
            PROBABILITY,
            "Probability that objects of another image are pasted into a training image. Each of its objects is pasted "
            "with probability 1/2. Needs masks (MODEL.MASK_ON).",
            0.0,
        ),
        Row(
            "INPUT.COPY_PASTE.SCALE",
            _SCALES,
            "Minimum and maximum scale of the other image, relative to fitting it into the size of the training image.",
            (0.5, 1.5),
        ),
        Row(
            "INPUT.COLOR_AUG_SSD",
            FLAG,
            "Whether to change brightness, contrast, saturation and hue of training images at random, as in SSD.",
            False,
        ),
        Row(
            "INPUT.SCALE_RANGE",
            _SCALES,
            "Minimum and maximum factor that multiplies MIN_SIZE_TRAIN and MAX_SIZE_TRAIN, drawn for each training "
            "image. Semantic segmentation only (META_ARCHITECTURE SemanticSegmentor).",
            (1.0, 1.0),
        ),
        Row(
            "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
            SHARE,
            "Largest share of a crop that a single class may fill. Other crops are drawn again, at most 10 times. "
            "Semantic segmentation only.",
            1.0,
        ),
        Row(
            "INPUT.SIZE_DIVISOR_TEST",
            PIXELS,
            "Divisor of the sides of test images, in pixels: sides are resized up to a multiple of it. Semantic "
            "segmentation only.",
            1,
        ),
    ],
    "Your own data, without code": [
        Row(
            "DATASETS.TRAIN_JSON",
            PATHS,
            "COCO-format json file with the annotations to train on, or a folder of shards with it. A path, or a URL "
            "(s3, gs, az, https). Or a list of several, which must have the same classes. Replaces DATASETS.TRAIN; "
            "needs TRAIN_IMAGES.",
            "",
        ),
        Row(
            "DATASETS.TRAIN_IMAGES",
            PATHS,
            "Folder with the images of TRAIN_JSON or TRAIN_LABELS, or a folder of shards. A path or URL. If these are "
            "lists: a list of as many folders, or one folder for all.",
            "",
        ),
        Row(
            "DATASETS.TRAIN_WEIGHTS",
            _weights(),
            "Share of the training samples that is drawn from each data set of TRAIN_JSON, TRAIN_LABELS or TRAIN, in "
            "the same order. The numbers are divided by their sum. Empty draws each image of all data sets equally "
            "often.",
            (),
        ),
        Row(
            "DATASETS.VAL_JSON",
            TEXT,
            "COCO-format json file with the annotations to evaluate on, as TRAIN_JSON. Replaces DATASETS.TEST; needs "
            "VAL_IMAGES.",
            "",
        ),
        Row("DATASETS.VAL_IMAGES", TEXT, "Folder with the images of VAL_JSON or VAL_LABELS, as TRAIN_IMAGES.", ""),
        Row(
            "DATASETS.TRAIN_LABELS",
            PATHS,
            "Folder with the label maps to train on, for segmentation: one 8-bit PNG file per image, with the image's "
            "name, or a folder of shards. A path or URL. Pixel values are class indices, or 255 for no class. For "
            "Panoptic FPN, 0 means any thing (a class of TRAIN_JSON, which is needed too). Or a list of several "
            "folders. Replaces DATASETS.TRAIN; needs TRAIN_IMAGES and LABEL_NAMES.",
            "",
        ),
        Row(
            "DATASETS.VAL_LABELS",
            TEXT,
            "Folder with the label maps to evaluate on, in the format of TRAIN_LABELS. Replaces DATASETS.TEST.",
            "",
        ),
        Row("DATASETS.LABEL_NAMES", NAMES, "Names of the classes in the label maps, from value 0 on.", []),
        Row(
            "DATASETS.VAL_PANOPTIC_JSON",
            TEXT,
            "Ground truth of Panoptic FPN in COCO's panoptic format; needs VAL_JSON and VAL_LABELS. Its PNG files are "
            'in a folder of the same name without ".json", next to the file or next to the file\'s folder.',
            "",
        ),
        Row(
            "DATASETS.CLASS_NAMES",
            list_of(TEXT),
            "Names of the object classes, in the order of their indices. Training sets them from its data, so that the "
            "run's config.yaml names the classes of its model. Evaluation refuses data with different classes, unless "
            "this is empty.",
            [],
        ),
        Row(
            "DATASETS.ON_ERROR",
            choice(("stop", "skip", "strict")),
            'What to do with a broken image or annotation: "stop" (end the run) or "skip" (leave it out and count it). '
            "Both fix and count problems that have only one possible fix, such as a missing area; "
            '"strict" refuses these too.',
            "stop",
        ),
        Row(
            "DATASETS.ALLOW_OUTSIDE",
            FLAG,
            'Whether file names in the json file may be absolute or leave the image folder with "..".',
            False,
        ),
        Row(
            "DATASETS.CHECK",
            choice(("full", "fast", "off")),
            'Check of the data before the first step: "full" (decode every image), "fast" (read the json file and the '
            'images\' headers) or "off".',
            "fast",
        ),
    ],
    "Solver": [
        Row("SOLVER.OPTIMIZER", choice(_optimizers), "Optimizer.", "adamw"),
        Row(
            "SOLVER.BETAS",
            list_of(RATE, length=2),
            "AdamW's decay rates of the first and second moments.",
            (0.9, 0.999),
        ),
        Row(
            "SOLVER.BACKBONE_MULTIPLIER",
            number(at_least=0, at_most=100),
            "Factor of the learning rate of the trunk. DETR and RT-DETRv2 train a pretrained trunk with 0.1.",
            1.0,
        ),
        Row(
            "SOLVER.CHECKPOINT_KEEP",
            integer(1, MANY),
            "Number of periodic checkpoints to keep. Each holds the whole training state: three times the size of the "
            "weights, or four times with SOLVER.EMA.ENABLED. The last one is enough to resume. The weights in "
            "model_best.pth and model_final.pth are always kept.",
            1,
        ),
        Row(
            "SOLVER.EPOCHS",
            integer(0, 100_000),
            "Number of passes over the training images: a pass is as many samples as all data sets have images. If it "
            "is not 0, it replaces MAX_ITER as soon as the data is read, and STEPS, TEST.EVAL_PERIOD and other keys "
            "follow. The run's config.yaml has the resulting numbers.",
            0,
        ),
        Row(
            "SOLVER.POLY_LR_POWER",
            number(above=0, at_most=10),
            "Exponent of the schedule WarmupPolyLR (LR_SCHEDULER_NAME), (1 - iteration / MAX_ITER) ^ exponent.",
            0.9,
        ),
        Row(
            "SOLVER.AMP.PRECISION",
            choice(("bf16", "fp16")),
            "Number format of autocast when SOLVER.AMP.ENABLED is True.",
            "bf16",
        ),
        Row(
            "SOLVER.ACCUMULATE_STEPS",
            integer(1, 100_000),
            "Number of batches of SOLVER.IMS_PER_BATCH images per optimizer step. MAX_ITER counts optimizer steps.",
            1,
        ),
        Row(
            "SOLVER.EMA.ENABLED",
            FLAG,
            "Whether to keep an exponential moving average of the weights. Evaluation and the best checkpoint then use "
            "it.",
            False,
        ),
        Row(
            "SOLVER.EMA.DECAY",
            RATE,
            "Decay of the moving average. The first steps use a smaller one, (1 + n) / (10 + n) at step n.",
            0.9998,
        ),
        Row(
            "SOLVER.MAX_NONFINITE_STEPS",
            integer(0, MANY),
            "Maximum number of consecutive iterations with a NaN or infinite loss or gradient. They are skipped "
            "without changing the weights; one more ends the run.",
            10,
        ),
    ],
    "Evaluation": [
        Row(
            "TEST.PRECISION",
            choice(_precisions),
            'Number format of evaluation and prediction: "fp32", or "bf16" or "fp16" with autocast.',
            "fp32",
        ),
        Row(
            "TEST.EVALUATOR",
            choice(("hotcoco", "pycocotools")),
            "Implementation of the COCO metrics. Both give the same numbers.",
            "hotcoco",
        ),
        Row(
            "TEST.BEST_METRIC",
            matching(_is_metric, f"task/name with a task among {', '.join(_TASKS)}, such as sem_seg/mIoU, or ''"),
            'Metric that selects the best checkpoint. "" selects segm/AP with masks (MODEL.MASK_ON) and bbox/AP '
            "without.",
            "",
        ),
        Row(
            "TEST.VALIDATION_LOSS",
            FLAG,
            "Whether every evaluation also computes the losses on the validation data.",
            False,
        ),
        Row(
            "TEST.EARLY_STOP_PATIENCE",
            integer(0, MANY),
            "Number of consecutive evaluations without a better metric after which training stops; 0 disables early "
            "stopping.",
            0,
        ),
        Row(
            "TEST.ON_ERROR",
            choice(("stop", "continue")),
            'What to do when an evaluation during training fails: "stop" (end the run) or "continue" (log the error '
            "and train on). With more than one process the run always ends.",
            "stop",
        ),
    ],
    "Loggers": [
        Row(
            "LOGGERS",
            _loggers(),
            "Loggers of the training: tensorboard, mlflow, wandb, or those of other installed packages. [] is none. "
            "The file metrics.json is always written.",
            ["tensorboard"],
        ),
    ],
}


def get_config() -> CfgNode:
    """Return a config with the defaults of all keys, Detectron2's and this package's.

    `MODEL.DEVICE` is "cuda" if a GPU is available, and "cpu" otherwise.
    """
    import torch
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    add_pvt_config(cfg)
    return cfg


def add_pvt_config(cfg: CfgNode) -> None:
    """Add this package's keys with their defaults to a config, and make Detectron2 know what they name.

    Models are registered with Detectron2, and `pvt://…` with its PathManager. Detectron2's DefaultTrainer and
    DefaultPredictor raise a `ConfigError` from then on if a config has this package's models and keys that they would
    ignore. Registering here keeps `import pvt_det` free of Detectron2, which takes seconds to import.

    Args:
        cfg: Detectron2's config, changed in place.
    """
    from detectron2.config import CfgNode

    import pvt_det.modeling  # noqa: F401
    from pvt_det.config.default_classes import guard_default_classes
    from pvt_det.config.weights_handler import register_weights

    guard_default_classes()
    register_weights()

    for row in itertools.chain(*ADDED_KEYS.values()):
        *sections, name = row.key.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, CfgNode())
        node[name] = copy.deepcopy(row.default)
