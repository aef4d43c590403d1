"""Every configuration key that this project adds to Detectron2's, with its meaning and unit."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager

# What yacs raises for wrong keys, types and files.
_YACS_ERRORS = AssertionError, AttributeError, KeyError, RecursionError, TypeError, ValueError
# Detectron2's RetinaNet configs compute their anchors in Python; they are as trusted as its code.
_DETECTRON2_CONFIGS = os.path.join(os.path.dirname(detectron2.__file__), "model_zoo", "configs")


def add_yolact_config(cfg: CN) -> None:
    """Add the keys of this project, with the values of the papers' models, to `cfg` in place."""
    _add_shared_keys(cfg)
    _add_yolact_keys(cfg)
    _add_embedmask_keys(cfg)


def _add_shared_keys(cfg: CN) -> None:
    # Allow file names that lead out of a dataset's image folder, by ".." or an absolute path.
    cfg.DATASETS.ALLOW_PATHS_OUTSIDE = False
    # Compare the header of every image file with its annotations before a run starts.
    cfg.DATASETS.CHECK_IMAGES = True

    # How long a process waits for the others in a collective before the run ends, in seconds.
    cfg.DIST_TIMEOUT_SECONDS = 300

    # What is below the pyramid, a name in BACKBONE_REGISTRY such as build_timm_backbone,
    # if MODEL.BACKBONE.NAME is build_yolact_fpn_backbone or build_fcos_fpn_backbone.
    cfg.MODEL.FPN.BOTTOM_UP = "build_resnet_backbone"
    cfg.MODEL.TIMM = CN()
    # A model of timm that supports features_only. Its maps of stride 8 to 32 are "res3" to "res5".
    cfg.MODEL.TIMM.NAME = ""
    # Load timm's weights unless MODEL.WEIGHTS names others.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Further arguments of timm.create_model, in a YAML file. Models that take one image size only,
    # such as Swin, need img_size: that of the images, rounded up to a multiple of 32.
    cfg.MODEL.TIMM.ARGS = CN(new_allowed=True)

    # Drop objects whose width or height after augmentation is at most this, in pixels.
    cfg.INPUT.MIN_BOX_SIZE = 4.0

    # "SGD" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Of mixed precision, SOLVER.AMP.ENABLED: "float16", on GPUs, or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Evaluate and save an exponential moving average of the weights, of about 1 / (1 - DECAY)
    # iterations.
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.999

    # Batches with non-finite losses or gradients are skipped; after this many in a row training
    # stops.
    cfg.SOLVER.MAX_SKIPPED = 10


def _add_yolact_keys(cfg: CN) -> None:
    """Keys of YOLACT, its backbones and its augmentation; EmbedMask's configs use none of them."""
    # Side S, in pixels, of the square that every image is resized to; MIN_SIZE_TRAIN is not used.
    # MODEL.ANCHOR_GENERATOR.SIZES are pixels at S: scale them too, int(size / 550 * S).
    cfg.INPUT.IMAGE_SIZE = 550

    # Training augmentation in order of application, in place of INPUT.CROP and
    # INPUT.COLOR_AUG_SSD. INPUT.RANDOM_FLIP and the resize to INPUT.IMAGE_SIZE follow.
    cfg.INPUT.AUG = CN()
    cfg.INPUT.AUG.PHOTOMETRIC = True
    cfg.INPUT.AUG.EXPAND = True
    # Largest side of the canvas of EXPAND, as a multiple of the image's.
    cfg.INPUT.AUG.EXPAND_MAX_RATIO = 4.0
    # Colour of the canvas, in the order of INPUT.FORMAT: ImageNet's mean. For "L" one value, or
    # RGB, which is turned to grey.
    cfg.INPUT.AUG.EXPAND_COLOR = [123.68, 116.78, 103.94]
    cfg.INPUT.AUG.CROP = True
    # Smallest side of the patch of CROP, as a fraction of the image's.
    cfg.INPUT.AUG.CROP_MIN_RATIO = 0.3
    # [smallest, largest] scale, such as [0.1, 2.0], of large-scale jitter: the image is resized to
    # fit scale * S, keeping its aspect ratio, then cropped, or padded with EXPAND_COLOR, to S x S.
    # It replaces EXPAND and CROP, which are then not applied, and the resize to S. []: off.
    cfg.INPUT.AUG.SCALE_JITTER = []
    # Probability that an image becomes a mosaic of it and three others, after all of the above.
    cfg.INPUT.AUG.MOSAIC_PROB = 0.0
    # Probability that objects of another image are pasted on the image, last. Each is pasted with
    # probability 1/2.
    cfg.INPUT.AUG.COPY_PASTE_PROB = 0.0

    # f: in training the model resizes each batch to a random side, a multiple of 32 in
    # S * (1 - f) to S * (1 + f), instead of S. Not for backbones that take one image size only.
    cfg.INPUT.MULTI_SCALE = 0.0

    # Freeze batch norm (statistics, scale and shift) if a device sees fewer images per step.
    cfg.MODEL.BACKBONE.FREEZE_BN_BELOW = 6

    cfg.MODEL.DARKNET = CN()
    cfg.MODEL.DARKNET.OUT_FEATURES = ["dark3", "dark4", "dark5"]
    cfg.MODEL.DARKNET.NORM = "BN"

    # n: blocks 0, n, 2n, ... of each stage in MODEL.RESNETS.DEFORM_ON_PER_STAGE are deformable.
    cfg.MODEL.RESNETS.DEFORM_INTERVAL = 1

    # True: height = width = SIZES * sqrt(ratio), as in the published YOLACT models.
    # False: width = SIZES * sqrt(ratio), height = SIZES / sqrt(ratio).
    # Either way MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS are width / height.
    cfg.MODEL.ANCHOR_GENERATOR.SQUARE = True

    cfg.MODEL.YOLACT = CN()
    _add_class_keys(cfg.MODEL.YOLACT)
    # Pyramid levels that the head uses, finest first. The protonet uses the first.
    cfg.MODEL.YOLACT.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # A name in YOLACT_HEAD_REGISTRY: YOLACTHead, or DecoupledHead, which has two towers.
    cfg.MODEL.YOLACT.HEAD = "YOLACTHead"
    # Channels of the head's convolutions.
    cfg.MODEL.YOLACT.HEAD_CONV_DIM = 256
    # Number of convolutions of each tower of DecoupledHead.
    cfg.MODEL.YOLACT.HEAD_NUM_CONVS = 2
    # True: the head predicts the logarithms of the distances from the centre of an anchor to the
    # sides of the box, as FCOS does, in place of the coding with BBOX_REG_WEIGHTS. Each cell has
    # one anchor. Its size is only a unit, and does not depend on S: four cells, for instance.
    cfg.MODEL.YOLACT.ANCHOR_FREE = False
    # Probability of each class at the start of training, unless CLS_LOSS_TYPE is softmax.
    cfg.MODEL.YOLACT.PRIOR_PROB = 0.01

    cfg.MODEL.YOLACT.PROTONET = CN()
    # A name in PROTONET_REGISTRY.
    cfg.MODEL.YOLACT.PROTONET.NAME = "Protonet"
    cfg.MODEL.YOLACT.PROTONET.CONV_DIM = 256
    # Number of convolutions before the upsampling.
    cfg.MODEL.YOLACT.PROTONET.NUM_CONVS = 3
    # Number k of prototypes, and of mask coefficients per anchor.
    cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES = 32

    # YOLACT++'s mask re-scoring network, which predicts the IoU of each mask.
    cfg.MODEL.YOLACT.MASK_IOU = CN()
    cfg.MODEL.YOLACT.MASK_IOU.ENABLED = False
    # Channels of its stride-2 convolutions.
    cfg.MODEL.YOLACT.MASK_IOU.CONV_DIMS = [8, 16, 32, 64, 128]
    # It is trained on objects whose masks have more grid cells than this.
    cfg.MODEL.YOLACT.MASK_IOU.MIN_AREA = 25

    # A name in YOLACT_CRITERION_REGISTRY: YOLACTCriterion, that of the papers, or
    # ComposedCriterion, which has the parts that the next keys name.
    cfg.MODEL.YOLACT.CRITERION = "YOLACTCriterion"
    # Which anchors learn an object: "max_iou", by IOU_THRESHOLDS, "atss", or "task_aligned", by
    # TASK_ALIGNED.
    cfg.MODEL.YOLACT.ASSIGNER = "max_iou"
    # "softmax", with background and hard negatives, or, with an independent probability for each
    # class and all anchors: "bce", "quality_focal" or "varifocal".
    cfg.MODEL.YOLACT.CLS_LOSS_TYPE = "softmax"
    # "smooth_l1", "giou", "diou" or "ciou".
    cfg.MODEL.YOLACT.BBOX_REG_LOSS_TYPE = "smooth_l1"
    # "bce" or "bce_dice", its sum with the Dice loss.
    cfg.MODEL.YOLACT.MASK_LOSS_TYPE = "bce"
    # The TOPK anchors with the largest score^ALPHA x IoU^BETA learn an object. The numbers are
    # YOLOv8's; those of the article (TOOD) are 13, 1 and 6.
    cfg.MODEL.YOLACT.TASK_ALIGNED = CN()
    cfg.MODEL.YOLACT.TASK_ALIGNED.TOPK = 10
    cfg.MODEL.YOLACT.TASK_ALIGNED.ALPHA = 0.5
    cfg.MODEL.YOLACT.TASK_ALIGNED.BETA = 6.0

    # Anchors are background below the first IoU, foreground from the second, ignored between.
    cfg.MODEL.YOLACT.IOU_THRESHOLDS = [0.4, 0.5]
    # Background anchors with more than this fraction of their area in a crowd region are ignored.
    cfg.MODEL.YOLACT.CROWD_OVERLAP_THRESH = 0.7
    # Weights (x, y, w, h) of the box coding: 1 / variances of SSD.
    cfg.MODEL.YOLACT.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

    # Hard negatives per positive in the class loss (OHEM), if CLS_LOSS_TYPE is softmax.
    cfg.MODEL.YOLACT.NEGATIVE_POSITIVE_RATIO = 3
    # Least number of hard negatives per image. With 0, images without objects train nothing in the
    # class loss; a number such as 30 lets them reduce false positives. Such images are left out of
    # training unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False.
    cfg.MODEL.YOLACT.MIN_NEGATIVES_PER_IMAGE = 0
    # Positives per image in the mask loss, a random subset. 0: all.
    cfg.MODEL.YOLACT.MAX_MASK_POSITIVES = 100
    cfg.MODEL.YOLACT.LOSS_CLS_WEIGHT = 1.0
    cfg.MODEL.YOLACT.LOSS_BOX_REG_WEIGHT = 1.5
    cfg.MODEL.YOLACT.LOSS_MASK_WEIGHT = 6.125
    cfg.MODEL.YOLACT.LOSS_SEM_SEG_WEIGHT = 1.0
    # With MASK_IOU only.
    cfg.MODEL.YOLACT.LOSS_MASK_IOU_WEIGHT = 25.0

    # Drop anchors before NMS unless their best class score is above this.
    cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.05
    # A name in NMS_REGISTRY: fast_nms, cross_class_fast_nms or batched_nms.
    cfg.MODEL.YOLACT.NMS = "fast_nms"
    cfg.MODEL.YOLACT.NMS_THRESH_TEST = 0.5
    # Best boxes per class that enter Fast NMS.
    cfg.MODEL.YOLACT.TOPK_CANDIDATES_TEST = 200


def _add_embedmask_keys(cfg: CN) -> None:
    cfg.MODEL.EMBEDMASK = CN()
    _add_class_keys(cfg.MODEL.EMBEDMASK)
    # Pyramid levels that the head uses, finest first. The pixel embeddings are from the first.
    cfg.MODEL.EMBEDMASK.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Number of convolutions of each tower of the head.
    cfg.MODEL.EMBEDMASK.NUM_CONVS = 4
    # Number D of embedding dimensions. Two of them are coordinates.
    cfg.MODEL.EMBEDMASK.EMBED_DIM = 16
    # Distance between embeddings where the probability is 1/2, at the start of training. In the
    # spatial dimensions 1 is 100 pixels.
    cfg.MODEL.EMBEDMASK.INIT_MARGIN = 2.0
    # Class probability at the start of training.
    cfg.MODEL.EMBEDMASK.PRIOR_PROB = 0.01

    # A location is assigned to an object only if it is nearer than this to the centre of the box,
    # along x and y, in strides.
    cfg.MODEL.EMBEDMASK.CENTER_SAMPLING_RADIUS = 1.5
    # It is also only assigned if its largest distance to a side of the box, in pixels, is in the
    # range of its level. These are the upper ends of the ranges of all levels but the last.
    cfg.MODEL.EMBEDMASK.SIZES_OF_INTEREST = [64, 128, 256, 512]
    cfg.MODEL.EMBEDMASK.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.EMBEDMASK.FOCAL_LOSS_GAMMA = 2.0
    cfg.MODEL.EMBEDMASK.LOSS_CLS_WEIGHT = 1.0
    cfg.MODEL.EMBEDMASK.LOSS_BOX_REG_WEIGHT = 1.0
    cfg.MODEL.EMBEDMASK.LOSS_CENTERNESS_WEIGHT = 1.0
    cfg.MODEL.EMBEDMASK.LOSS_MASK_WEIGHT = 0.5
    # The smooth loss of the article's first version (0.1 there). With it an object is represented
    # by the mean of its proposals, without it by the best one.
    cfg.MODEL.EMBEDMASK.LOSS_SMOOTH_WEIGHT = 0.0

    # A location is a candidate for each class whose probability, without the centre-ness, is above
    # this.
    cfg.MODEL.EMBEDMASK.CLASS_SCORE_THRESH_TEST = 0.05
    # Best candidates of each level that enter NMS.
    cfg.MODEL.EMBEDMASK.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.EMBEDMASK.NMS_THRESH_TEST = 0.6
    # Pixels with a higher probability belong to a mask.
    cfg.MODEL.EMBEDMASK.MASK_THRESH_TEST = 0.53


def _add_class_keys(node: CN) -> None:
    """Add the keys that all meta-architectures have under their own node of ``cfg.MODEL``."""
    # Number of foreground classes.
    node.NUM_CLASSES = 80
    # Their names, and their category ids in the COCO JSON that the model was trained on, in the
    # model's order. Empty: those of the first dataset in DATASETS with as many classes.
    # train_net.py --train-json sets both.
    node.CLASS_NAMES = []
    node.CATEGORY_IDS = []
    # Fine-tuning: if MODEL.WEIGHTS has another number of classes, initialise the class layers anew.
    node.NEW_CLASSES = False
    # Drop detections with a lower score from the result; the others stay as they are. The option
    # --confidence-threshold of the programs sets it. If it is 0, programs that draw use 0.5, and
    # those that show how masks are made 0.3. MODEL.RETINANET.SCORE_THRESH_TEST, which Detectron2's
    # own demo sets, does the same if it is above its default, 0.05.
    node.SCORE_THRESH_TEST = 0.0


def model_node(cfg: CN) -> str:
    """The name of the node of ``cfg.MODEL`` with the keys of its meta-architecture: "YOLACT" or
    "EMBEDMASK".

    Raises:
        ValueError: if MODEL.META_ARCHITECTURE is no model of this project.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    architecture: Any = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    if not hasattr(architecture, "config_node"):
        raise ValueError(f"MODEL.META_ARCHITECTURE is {name}, not YOLACT or EmbedMask")
    return architecture.config_node


def _config_folder() -> Path:
    package = Path(__file__).resolve().parent
    # Inside an installed package (see setup.py), beside the package in a clone.
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def model_names() -> list[str]:
    """The names of this project's models: those of the files in configs/, without ".yaml"."""
    stems = (path.stem for path in _config_folder().glob("*.yaml"))
    return sorted(stem for stem in stems if not stem.startswith("Base-"))


def get_config_file(name: str) -> str:
    """The path of a config file.

    Args:
        name: of a model in this project's or in Detectron2's model zoo, with or without ".yaml".
            With ".py": of a lazy config. The path of a file stays as it is.

    Raises:
        FileNotFoundError: listing this project's models, if there is no such file and no model.
    """
    if PathManager.isfile(name):
        return name
    stem, names = name.removesuffix(".yaml"), model_names()
    if stem in names:
        return str(_config_folder() / f"{stem}.yaml")
    lazy = _config_folder() / "lazy" / name
    if name.endswith(".py") and lazy.is_file():
        return str(lazy)
    path = os.path.join(_DETECTRON2_CONFIGS, f"{stem}.yaml")
    if os.path.isfile(path):
        return path
    raise FileNotFoundError(
        f"there is no config file and no model {name!r}; the models are {', '.join(names)}, and "
        "those of Detectron2, such as COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
    )


def load_config(config_file: str, opts: Sequence[str] = (), *, keep_device: bool = False) -> CN:
    """Read a config of this project or of Detectron2, for the machine at hand.

    Unlike ``cfg.merge_from_file`` it never executes Python in a config file, except in those that
    are installed with Detectron2.

    Args:
        config_file: see :func:`get_config_file`.
        opts: alternating keys and values that override the file's.
        keep_device: leave MODEL.DEVICE as it is, for a config that is saved.

    Returns:
        the config, not frozen. MODEL.DEVICE is "cpu" if it asks for a GPU and there is none.

    Raises:
        OSError, ValueError: naming the file or key that is wrong.
    """
    config_file = get_config_file(config_file)
    real_path = os.path.realpath(config_file)
    is_detectron2s = real_path.startswith(os.path.realpath(_DETECTRON2_CONFIGS) + os.sep)
    cfg = get_cfg()
    add_yolact_config(cfg)
    try:
        cfg.merge_from_file(
            real_path if is_detectron2s else config_file, allow_unsafe=is_detectron2s
        )
    except (*_YACS_ERRORS, yaml.YAMLError) as error:
        raise ValueError(f"{config_file} cannot be read as a config: {error}") from error
    try:
        cfg.merge_from_list(list(opts))
    except _YACS_ERRORS as error:
        raise ValueError(f"config overrides: {error}") from error
    return cfg if keep_device else for_this_machine(cfg)


def for_this_machine(cfg: CN) -> CN:
    """The config with :func:`available_device` as MODEL.DEVICE; a warning if that is another."""
    device = available_device(cfg.MODEL.DEVICE)
    if device != cfg.MODEL.DEVICE:
        logging.getLogger(__name__).warning(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but no GPU is found: running on the CPU."
        )
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
    return cfg


def available_device(device: str) -> str:
    """MODEL.DEVICE, or "cpu" if that is a GPU and there is none.

    Raises:
        ValueError: if it is no device of PyTorch.
    """
    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"MODEL.DEVICE is {device!r}: {error}") from error
    is_missing = device.startswith("cuda") and not torch.cuda.is_available()
    return "cpu" if is_missing else device
