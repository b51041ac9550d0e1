"""The configuration keys that this package adds to Detectron2's, each with its default and description.

Only builders read the config (`from_config`, `build_*`), never a model's `forward`.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, get_cfg


def get_config() -> CfgNode:
    """Return a config with the defaults of all keys, Detectron2's and this package's.

    `MODEL.DEVICE` is "cuda" if a GPU is available, and "cpu" otherwise.
    """
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    add_pvt_config(cfg)
    return cfg


def add_pvt_config(cfg: CfgNode) -> None:
    """Add this package's keys with their defaults to a config, and register the models that they configure.

    Registering here keeps `import pvt_det` free of Detectron2, which takes seconds to import.

    Args:
        cfg: Detectron2's config, changed in place.
    """
    import pvt_det.modeling  # noqa: F401

    # --- trunk -----------------------------------------------------------------------------------------------
    cfg.MODEL.PVT = CfgNode()
    # Variant of the PVT trunk: pvt_tiny, pvt_small, pvt_medium, pvt_large, pvt_v2_b0 … pvt_v2_b5, or pvt_v2_b2_li.
    cfg.MODEL.PVT.VARIANT = "pvt_small"
    # Feature maps that the backbone returns: some of stage1 … stage4, in this order. Their strides are 4, 8, 16 and 32.
    cfg.MODEL.PVT.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    # Stochastic depth rate of the last block, in [0, 1). The rate rises linearly from 0 in the first block.
    cfg.MODEL.PVT.DROP_PATH_RATE = 0.1
    # Side of the square images in pretraining, in pixels: a multiple of 32. It sets the size of the position
    # embeddings, which only PVT v1 has.
    cfg.MODEL.PVT.PRETRAIN_IMG_SIZE = 224
    # Epsilon of the LayerNorms after patch embedding and spatial reduction. Use 1e-5 as in the published code, or 1e-6
    # for detectors that were trained with MMDetection's own PVT. All other LayerNorms use 1e-6.
    cfg.MODEL.PVT.EMBED_NORM_EPS = 1e-5
    # Number of stages to freeze, from the first on: 0 to 4. Frozen stages get no gradient and stay in evaluation mode.
    cfg.MODEL.PVT.FROZEN_STAGES = 0
    # Stages (of 1 … 4) whose activations are recomputed in the backward pass to save memory.
    cfg.MODEL.PVT.CHECKPOINT_STAGES = []
    # Mode of torch.compile for the trunk's stages on a GPU: "" (not compiled), "default" or "reduce-overhead". One
    # compiled program per stage serves all image sizes. "reduce-overhead" also replays CUDA graphs in inference, one
    # graph per image size, and all calls must come from one thread. Ignored on a CPU, where the uncompiled trunk is
    # faster. PVT v2 is compiled for inference only.
    cfg.MODEL.PVT.COMPILE = ""

    # --- FPN and heads ---------------------------------------------------------------------------------------
    # Whether RetinaNet's FPN has a ReLU between P6 and P7. Detectron2 has it; the published PVT detectors do not.
    cfg.MODEL.FPN.P7_RELU = False
    # Divisor of RetinaNet's losses: "ema" (Detectron2: a moving average of the number of positive anchors) or "batch"
    # (MMDetection: the number of positive anchors in the current batch).
    cfg.MODEL.RETINANET.LOSS_NORMALIZER = "ema"
    # Whether to match the best proposal of each ground-truth box to that box, even if the proposal overlaps another
    # box more. This is MMDetection's match_low_quality with min_pos_iou equal to the threshold, as in its Mask R-CNN.
    # Needs a single value in MODEL.ROI_HEADS.IOU_THRESHOLDS. Cascade R-CNN does not support it.
    cfg.MODEL.ROI_HEADS.ALLOW_LOW_QUALITY_MATCHES = False
    # Dropout rate of the channels before the semantic head's classifier, in [0, 1).
    cfg.MODEL.SEM_SEG_HEAD.DROPOUT = 0.0
    # Pixels that the semantic loss is averaged over: "valid" (Detectron2: labeled pixels) or "all" (MMSegmentation
    # 0.x: ignored and padded pixels too).
    cfg.MODEL.SEM_SEG_HEAD.LOSS_AVERAGE = "valid"

    # --- input -----------------------------------------------------------------------------------------------
    # Library that resizes images: "pil" (Detectron2: anti-aliased) or "cv2" (MMDetection: plain bilinear).
    cfg.INPUT.RESIZE_BACKEND = "pil"
    cfg.INPUT.CROP_BRANCH = CfgNode()
    # Whether half of the training images are resized and cropped before the usual resizing, as in DETR and in PVT v2's
    # 3x recipe. Detectors only.
    cfg.INPUT.CROP_BRANCH.ENABLED = False
    # Sizes of the short side in pixels before the crop. One is drawn for each image.
    cfg.INPUT.CROP_BRANCH.RESIZE = (400, 500, 600)
    # Minimum and maximum side of the random crop in pixels.
    cfg.INPUT.CROP_BRANCH.SIZE = (384, 600)
    cfg.INPUT.LARGE_SCALE_JITTER = CfgNode()
    # Whether large-scale jitter replaces resizing to MIN_SIZE_TRAIN: it scales each training image by a random factor,
    # then crops or pads it to a fixed size. Detectors only.
    cfg.INPUT.LARGE_SCALE_JITTER.ENABLED = False
    # Minimum and maximum scale factor, relative to the image fitted into SIZE. (0.1, 2.0) suits long schedules;
    # (0.8, 1.25) is called standard jitter.
    cfg.INPUT.LARGE_SCALE_JITTER.SCALE = (0.1, 2.0)
    # Height and width in pixels of the images after large-scale jitter.
    cfg.INPUT.LARGE_SCALE_JITTER.SIZE = (1024, 1024)
    cfg.INPUT.MOSAIC = CfgNode()
    # Probability, 0 to 1, that a training image is a mosaic of four images. Detectors only.
    cfg.INPUT.MOSAIC.PROBABILITY = 0.0
    # Minimum and maximum scale of the four images, relative to fitting them into the size of the first one.
    cfg.INPUT.MOSAIC.SCALE = (0.5, 1.5)
    cfg.INPUT.COPY_PASTE = CfgNode()
    # Probability, 0 to 1, that objects of another image are pasted into a training image. Each of its objects is pasted
    # with probability 1/2. Needs masks (MODEL.MASK_ON).
    cfg.INPUT.COPY_PASTE.PROBABILITY = 0.0
    # Minimum and maximum scale of the other image, relative to fitting it into the size of the training image.
    cfg.INPUT.COPY_PASTE.SCALE = (0.5, 1.5)
    # Whether to change brightness, contrast, saturation and hue of training images at random, as in SSD.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Minimum and maximum factor that multiplies MIN_SIZE_TRAIN and MAX_SIZE_TRAIN, drawn for each training image.
    # Semantic segmentation only (META_ARCHITECTURE SemanticSegmentor).
    cfg.INPUT.SCALE_RANGE = (1.0, 1.0)
    # Largest share, 0 to 1, of a crop that a single class may fill. Other crops are drawn again, at most 10 times.
    # Semantic segmentation only.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Divisor of the sides of test images, in pixels: sides are resized up to a multiple of it. Semantic segmentation
    # only.
    cfg.INPUT.SIZE_DIVISOR_TEST = 1

    # --- your own data, without code -------------------------------------------------------------------------
    # COCO-format json file with the annotations to train on. Replaces DATASETS.TRAIN; needs TRAIN_IMAGES.
    cfg.DATASETS.TRAIN_JSON = ""
    # Folder with the images of TRAIN_JSON or TRAIN_LABELS.
    cfg.DATASETS.TRAIN_IMAGES = ""
    # COCO-format json file with the annotations to evaluate on. Replaces DATASETS.TEST; needs VAL_IMAGES.
    cfg.DATASETS.VAL_JSON = ""
    # Folder with the images of VAL_JSON or VAL_LABELS.
    cfg.DATASETS.VAL_IMAGES = ""
    # Folder with the label maps to train on, for segmentation: one 8-bit PNG file per image, with the image's name.
    # Pixel values are class indices, or 255 for no class. For Panoptic FPN, 0 means any thing (a class of TRAIN_JSON,
    # which is needed too). Replaces DATASETS.TRAIN; needs TRAIN_IMAGES and LABEL_NAMES.
    cfg.DATASETS.TRAIN_LABELS = ""
    # Folder with the label maps to evaluate on, in the format of TRAIN_LABELS. Replaces DATASETS.TEST.
    cfg.DATASETS.VAL_LABELS = ""
    # Names of the classes in the label maps, from value 0 on.
    cfg.DATASETS.LABEL_NAMES = []
    # Ground truth of Panoptic FPN in COCO's panoptic format; needs VAL_JSON and VAL_LABELS. Its PNG files are in a
    # folder of the same name without ".json", next to the file or next to the file's folder.
    cfg.DATASETS.VAL_PANOPTIC_JSON = ""
    # Names of the object classes, in the order of their indices. Training sets them from its data, so that the run's
    # config.yaml names the classes of its model. Evaluation refuses data with different classes, unless this is empty.
    cfg.DATASETS.CLASS_NAMES = []
    # What to do with a broken image or annotation: "stop" (end the run) or "skip" (leave it out and count it). Both fix
    # and count problems that have only one possible fix, such as a missing area; "strict" refuses these too.
    cfg.DATASETS.ON_ERROR = "stop"
    # Whether file names in the json file may be absolute or leave the image folder with "..".
    cfg.DATASETS.ALLOW_OUTSIDE = False
    # Check of the data before the first step: "full" (decode every image), "fast" (read the json file and the images'
    # headers) or "off".
    cfg.DATASETS.CHECK = "fast"

    # --- solver ----------------------------------------------------------------------------------------------
    # Optimizer: "adamw" or "sgd".
    cfg.SOLVER.OPTIMIZER = "adamw"
    # AdamW's decay rates of the first and second moments, each in [0, 1).
    cfg.SOLVER.BETAS = (0.9, 0.999)
    # Exponent of the schedule WarmupPolyLR (LR_SCHEDULER_NAME), (1 - iteration / MAX_ITER) ^ exponent.
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # Number format of autocast when SOLVER.AMP.ENABLED is True: "bf16" or "fp16".
    cfg.SOLVER.AMP.PRECISION = "bf16"
    # Number of batches of SOLVER.IMS_PER_BATCH images per optimizer step, 1 or more. MAX_ITER counts optimizer steps.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    cfg.SOLVER.EMA = CfgNode()
    # Whether to keep an exponential moving average of the weights. Evaluation and the best checkpoint then use it.
    cfg.SOLVER.EMA.ENABLED = False
    # Decay of the moving average, in [0, 1). The first steps use a smaller one, (1 + n) / (10 + n) at step n.
    cfg.SOLVER.EMA.DECAY = 0.9998
    # Maximum number of consecutive iterations with a NaN or infinite loss or gradient. They are skipped without
    # changing the weights; one more ends the run.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10

    # --- evaluation ------------------------------------------------------------------------------------------
    # Number format of evaluation and prediction: "fp32", or "bf16" or "fp16" with autocast.
    cfg.TEST.PRECISION = "fp32"
    # Implementation of the COCO metrics: "hotcoco" or "pycocotools". Both give the same numbers.
    cfg.TEST.EVALUATOR = "hotcoco"
    # Metric that selects the best checkpoint, as task/name, such as sem_seg/mIoU. "" selects segm/AP with masks
    # (MODEL.MASK_ON) and bbox/AP without.
    cfg.TEST.BEST_METRIC = ""
    # Whether every evaluation also computes the losses on the validation data.
    cfg.TEST.VALIDATION_LOSS = False
    # Number of consecutive evaluations without a better metric after which training stops; 0 disables early stopping.
    cfg.TEST.EARLY_STOP_PATIENCE = 0
    # What to do when an evaluation during training fails: "stop" (end the run) or "continue" (log the error and train
    # on). With more than one process the run always ends.
    cfg.TEST.ON_ERROR = "stop"
