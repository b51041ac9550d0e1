"""Every configuration key that this package adds to Detectron2's.

A config is read in builders only (`from_config`, `build_*`), never in `forward`.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, get_cfg


def get_config() -> CfgNode:
    """Detectron2's keys and this package's, with their defaults; `MODEL.DEVICE` is "cuda" where there is one."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    add_pvt_config(cfg)
    return cfg


def add_pvt_config(cfg: CfgNode) -> None:
    """Add this package's keys and their defaults to `cfg`, in place, and register what they configure.

    Registering here keeps `import pvt_det` free of Detectron2, which takes seconds to import.
    """
    import pvt_det.modeling  # noqa: F401

    # --- trunk -----------------------------------------------------------------------------------------------
    cfg.MODEL.PVT = CfgNode()
    # A name of `pvt_det.models.variants`: pvt_tiny … pvt_large, pvt_v2_b0 … pvt_v2_b5, pvt_v2_b2_li.
    cfg.MODEL.PVT.VARIANT = "pvt_small"
    # Which maps the backbone gives out: stage1 … stage4, strides 4, 8, 16, 32.
    cfg.MODEL.PVT.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    # Stochastic depth, rising linearly from 0 in the first block to this in the last.
    cfg.MODEL.PVT.DROP_PATH_RATE = 0.1
    # Side in pixels of the square images that the position embeddings were made for (v1 only).
    cfg.MODEL.PVT.PRETRAIN_IMG_SIZE = 224
    # Epsilon of the LayerNorms after patch embedding and spatial reduction: 1e-5 in the published code, 1e-6 for
    # detectors that were trained with MMDetection's own PVT. All others have 1e-6.
    cfg.MODEL.PVT.EMBED_NORM_EPS = 1e-5
    # Stages 1 … n get no gradient and stay in evaluation mode; 0 freezes none.
    cfg.MODEL.PVT.FROZEN_STAGES = 0
    # Stages (of 1 … 4) whose activations are recomputed in the backward pass to save memory.
    cfg.MODEL.PVT.CHECKPOINT_STAGES = []
    # On a GPU, run the trunk's stages through torch.compile, each one program for all image sizes: "default", or
    # "reduce-overhead", which in inference replays CUDA graphs too, one for each image size, in one thread. "" does not
    # compile, nor does a CPU, where the plain trunk is the faster one. PVT v2 is compiled in inference only.
    cfg.MODEL.PVT.COMPILE = ""

    # --- FPN and heads ---------------------------------------------------------------------------------------
    # ReLU between P6 and P7 of RetinaNet: Detectron2 has it, the published PVT detectors do not.
    cfg.MODEL.FPN.P7_RELU = False
    # What RetinaNet's losses are divided by: "ema" (Detectron2: a moving average of the number of positive
    # anchors) or "batch" (MMDetection: the positive anchors of this batch).
    cfg.MODEL.RETINANET.LOSS_NORMALIZER = "ema"
    # Whether a proposal that is some box's best is matched with that box even when it overlaps another more
    # (MMDetection's "match_low_quality" with its least overlap equal to the threshold, as in its Mask R-CNN).
    cfg.MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES = False
    # Share of channels that the semantic head drops before its classifier.
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    # What the semantic loss is averaged over: "valid" pixels (Detectron2), or "all" (MMSegmentation 0.x), ignored and
    # padded ones too.
    cfg.MODEL.SEM_SEG_HEAD.LOSS_AVERAGE = "valid"

    # --- input -----------------------------------------------------------------------------------------------
    # "pil" (Detectron2: anti-aliased) or "cv2" (MMDetection: plain bilinear).
    cfg.INPUT.RESIZE_BACKEND = "pil"
    # Half of the training images take a second way, as in DETR and PVT v2's 3x recipe: resize the short side to one
    # of RESIZE, cut a random window whose sides lie within SIZE (least, most; pixels), then resize as all others.
    cfg.INPUT.CROP_BRANCH = CfgNode({"ENABLED": False, "RESIZE": (400, 500, 600), "SIZE": (384, 600)})
    # Large-scale jitter, in place of MIN_SIZE_TRAIN: fit the image into SIZE (height, width) times a factor within
    # SCALE, then cut or pad it to SIZE. (0.1, 2.0) suits long schedules, (0.8, 1.25) is called standard jitter.
    cfg.INPUT.LARGE_SCALE_JITTER = CfgNode({"ENABLED": False, "SCALE": (0.1, 2.0), "SIZE": (1024, 1024)})
    # Mosaic: the share of training images that are put together from four, each fitted into the first one's size times
    # a factor within SCALE and cut where they meet.
    cfg.INPUT.MOSAIC = CfgNode({"PROBABILITY": 0.0, "SCALE": (0.5, 1.5)})
    # Copy-paste: the share of training images that get objects of another, fitted into their size times a factor within
    # SCALE; each object with probability 1/2. Needs masks (MODEL.MASK_ON).
    cfg.INPUT.COPY_PASTE = CfgNode({"PROBABILITY": 0.0, "SCALE": (0.5, 1.5)})
    # Random brightness, contrast, saturation and hue, as in SSD.
    cfg.INPUT.COLOR_AUG_SSD = False
    # The next three are for semantic segmentation (META_ARCHITECTURE SemanticSegmentor). Training images: least and
    # greatest factor that MIN_SIZE_TRAIN and MAX_SIZE_TRAIN are multiplied by, drawn anew for each image.
    cfg.INPUT.SCALE_RANGE = (1.0, 1.0)
    # Crops of which a single class fills more than this share are drawn again, at most 10 times.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Sides of test images are resized up to multiples of this many pixels.
    cfg.INPUT.SIZE_DIVISOR_TEST = 1

    # --- data sets without code: COCO-format json and its image folder; they take the place of DATASETS.TRAIN/TEST
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.VAL_JSON = ""
    cfg.DATASETS.VAL_IMAGES = ""
    # Segmentation: folders of label maps, a PNG file for each image, named as it, whose values are class numbers (255:
    # none); LABEL_NAMES names them from 0 on. For Panoptic FPN they come beside the json files, 0 stands for all
    # things, and VAL_PANOPTIC_JSON is the ground truth in COCO's panoptic format, its PNG files in the folder of the
    # same name without ".json", beside it or beside its folder.
    cfg.DATASETS.TRAIN_LABELS = ""
    cfg.DATASETS.VAL_LABELS = ""
    cfg.DATASETS.LABEL_NAMES = []
    cfg.DATASETS.VAL_PANOPTIC_JSON = ""
    # Names of the object classes in the order of their numbers. Training fills them in from its data, so that the run's
    # config.yaml tells what its model finds; evaluation refuses data of other classes.
    cfg.DATASETS.CLASS_NAMES = []
    # What to do with an image or annotation that is broken: "stop", or "skip", which leaves it out and counts it. What
    # has one right value (a missing area) is fixed and counted by both, and refused too by "strict".
    cfg.DATASETS.ON_ERROR = "stop"
    # Whether the json's file names may be absolute or lead out of the image folder with "..".
    cfg.DATASETS.ALLOW_OUTSIDE = False
    # Check of the data before the first step: "full" decodes every image, "fast" reads the json and headers, "off".
    cfg.DATASETS.CHECK = "fast"

    # --- solver ----------------------------------------------------------------------------------------------
    # "adamw" or "sgd".
    cfg.SOLVER.OPTIMIZER = "adamw"
    cfg.SOLVER.BETAS = (0.9, 0.999)
    # Exponent of LR_SCHEDULER_NAME WarmupPolyLR, which falls as (1 - iteration / MAX_ITER) ^ power.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Number format of autocast while SOLVER.AMP.ENABLED: "bf16" or "fp16".
    cfg.SOLVER.AMP.PRECISION = "bf16"
    # Batches of SOLVER.IMS_PER_BATCH images to an optimizer step. An iteration is one step: MAX_ITER counts steps.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Exponential moving average of the weights; evaluation and the best checkpoint then use the average.
    cfg.SOLVER.EMA = CfgNode({"ENABLED": False, "DECAY": 0.9998})
    # An iteration whose loss or gradient is NaN or infinite changes nothing; more than so many in a row end the run.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10

    # --- evaluation ------------------------------------------------------------------------------------------
    # Number format of evaluation and prediction: "fp32", or "bf16" or "fp16" by autocast.
    cfg.TEST.PRECISION = "fp32"
    # "hotcoco" or "pycocotools": the same numbers.
    cfg.TEST.EVALUATOR = "hotcoco"
    # The metric, as `task/name`, that chooses the best checkpoint. "" takes segm/AP with masks and bbox/AP without.
    cfg.TEST.BEST_METRIC = ""
    # Losses on the validation data at every evaluation.
    cfg.TEST.VALIDATION_LOSS = False
    # Stop after this many evaluations without a better metric; 0 never stops early.
    cfg.TEST.EARLY_STOP_PATIENCE = 0
    # Whether a failed evaluation in mid-run ends the run ("stop") or is passed over ("continue", in one process only).
    cfg.TEST.ON_ERROR = "stop"
