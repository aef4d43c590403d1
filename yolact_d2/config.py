"""Every configuration key that this project adds to Detectron2's, with its meaning and unit."""

import io
import logging
import math
import os
from collections.abc import Sequence
from typing import TextIO

import detectron2
import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

# A config with all keys of Detectron2 has 15000 characters and 1300 values.
_MAX_CONFIG_LENGTH = 1_000_000
_MAX_CONFIG_VALUES = 100_000
# Those of RetinaNet, which tools/benchmark.py measures, compute their anchors in Python.
_DETECTRON2S = os.path.join(os.path.dirname(detectron2.__file__), "model_zoo", "configs")


def add_yolact_config(cfg: CN) -> None:
    """Add YOLACT's keys, with the values of the paper's ResNet models, to `cfg` in place."""
    # Side S, in pixels, of the square that every image is resized to. It replaces MIN_SIZE_TRAIN.
    # MODEL.ANCHOR_GENERATOR.SIZES are in its pixels: scale them along, int(size / 550 * S).
    cfg.INPUT.IMAGE_SIZE = 550

    # File names in a dataset may lead out of the folder of its images, by ".." or from "/".
    cfg.DATASETS.ALLOW_PATHS_OUTSIDE = False

    # Training augmentation, in the order in which it is applied, instead of INPUT.CROP and
    # INPUT.COLOR_AUG_SSD. INPUT.RANDOM_FLIP and the resize to INPUT.IMAGE_SIZE follow.
    cfg.INPUT.AUG = CN()
    cfg.INPUT.AUG.PHOTOMETRIC = True
    cfg.INPUT.AUG.EXPAND = True
    # Largest side of the canvas of EXPAND, as a multiple of the image's.
    cfg.INPUT.AUG.EXPAND_MAX_RATIO = 4.0
    # Colour of the canvas, in the order of INPUT.FORMAT: ImageNet's mean.
    cfg.INPUT.AUG.EXPAND_COLOR = [123.68, 116.78, 103.94]
    cfg.INPUT.AUG.CROP = True
    # Smallest side of the patch of CROP, as a fraction of the image's.
    cfg.INPUT.AUG.CROP_MIN_RATIO = 0.3
    # Objects not wider or not higher than this after augmentation, in pixels at S, are dropped.
    cfg.INPUT.MIN_BOX_SIZE = 4.0

    # Batch norm is frozen, statistics and affine, where a device sees fewer images a step.
    cfg.MODEL.BACKBONE.FREEZE_BN_BELOW = 6

    cfg.MODEL.DARKNET = CN()
    cfg.MODEL.DARKNET.OUT_FEATURES = ["dark3", "dark4", "dark5"]
    cfg.MODEL.DARKNET.NORM = "BN"

    # Of each stage in MODEL.RESNETS.DEFORM_ON_PER_STAGE the blocks 0, n, 2n, ... become deformable.
    cfg.MODEL.RESNETS.DEFORM_INTERVAL = 1

    # Training stops when so many batches in a row have a loss or gradients that are not finite. A
    # batch that has is skipped.
    cfg.SOLVER.MAX_SKIPPED = 10

    # True: height = width = SIZES * sqrt(ratio), as in the published YOLACT models.
    # False: width = SIZES * sqrt(ratio), height = SIZES / sqrt(ratio).
    # Either way MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS are width / height.
    cfg.MODEL.ANCHOR_GENERATOR.SQUARE = True

    cfg.MODEL.YOLACT = CN()
    # Number of foreground classes.
    cfg.MODEL.YOLACT.NUM_CLASSES = 80
    # Their names, and their ids in the COCO JSON that the model was trained on, in the model's
    # order. Empty: those of the first dataset in DATASETS that has as many.
    # train_net.py --train-json sets both.
    cfg.MODEL.YOLACT.CLASS_NAMES = []
    cfg.MODEL.YOLACT.CATEGORY_IDS = []
    # Fine-tuning: MODEL.WEIGHTS has another number of classes, so leave its class layers out.
    cfg.MODEL.YOLACT.NEW_CLASSES = False
    # Pyramid levels that the head looks at, finest first. The protonet looks at the first.
    cfg.MODEL.YOLACT.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.YOLACT.HEAD_CONV_DIM = 256

    cfg.MODEL.YOLACT.PROTONET = CN()
    # A name in PROTONET_REGISTRY.
    cfg.MODEL.YOLACT.PROTONET.NAME = "Protonet"
    cfg.MODEL.YOLACT.PROTONET.CONV_DIM = 256
    # Number of convolutions before the upsampling.
    cfg.MODEL.YOLACT.PROTONET.NUM_CONVS = 3
    # Number of prototypes k, and so of mask coefficients of an anchor.
    cfg.MODEL.YOLACT.PROTONET.NUM_PROTOTYPES = 32

    # YOLACT++: a network that predicts how good each mask is, see `Instances.mask_scores`.
    cfg.MODEL.YOLACT.MASK_IOU = CN()
    cfg.MODEL.YOLACT.MASK_IOU.ENABLED = False
    # Channels of its convolutions, each of which halves the mask.
    cfg.MODEL.YOLACT.MASK_IOU.CONV_DIMS = [8, 16, 32, 64, 128]
    # It is not trained on objects of so few cells of the prototypes, or fewer.
    cfg.MODEL.YOLACT.MASK_IOU.MIN_AREA = 25

    # Targets: background below the first IoU, foreground from the second, ignored between.
    cfg.MODEL.YOLACT.IOU_THRESHOLDS = [0.4, 0.5]
    # Background anchors with more than this part of their area in a crowd region are ignored.
    cfg.MODEL.YOLACT.CROWD_OVERLAP_THRESH = 0.7
    # Weights (x, y, w, h) of the box coding: 1 / variances of SSD.
    cfg.MODEL.YOLACT.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

    # Hardest negatives per positive that the class loss looks at (OHEM).
    cfg.MODEL.YOLACT.NEGATIVE_POSITIVE_RATIO = 3
    # Positives of an image that the mask loss looks at, a random subset. 0 means all.
    cfg.MODEL.YOLACT.MAX_MASK_POSITIVES = 100
    cfg.MODEL.YOLACT.LOSS_CLS_WEIGHT = 1.0
    cfg.MODEL.YOLACT.LOSS_BOX_REG_WEIGHT = 1.5
    cfg.MODEL.YOLACT.LOSS_MASK_WEIGHT = 6.125
    cfg.MODEL.YOLACT.LOSS_SEM_SEG_WEIGHT = 1.0
    # With MASK_IOU only.
    cfg.MODEL.YOLACT.LOSS_MASK_IOU_WEIGHT = 25.0

    # Anchors whose best class score is not above this are dropped before NMS.
    cfg.MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST = 0.05
    # A name in NMS_REGISTRY: fast_nms, cross_class_fast_nms or batched_nms.
    cfg.MODEL.YOLACT.NMS = "fast_nms"
    cfg.MODEL.YOLACT.NMS_THRESH_TEST = 0.5
    # Best boxes of a class that enter Fast NMS.
    cfg.MODEL.YOLACT.TOPK_CANDIDATES_TEST = 200
    # Detections with a lower score are dropped from the result. This is what a program's
    # --confidence-threshold sets; it changes nothing about the detections that remain.
    cfg.MODEL.YOLACT.SCORE_THRESH_TEST = 0.0


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Read a config of this project, for the machine at hand.

    Args:
        config_file: path of a YAML file.
        opts: keys and values in turn, which override the file's.

    Returns:
        the config, not frozen. MODEL.DEVICE is "cpu" if it asked for a GPU and there is none.

    Raises:
        FileNotFoundError, ValueError, KeyError, yaml.YAMLError: naming the file or key that is
            wrong. A file that asks for Python objects is, and nothing of it is run, unless it is
            one that is installed with Detectron2.
    """
    if not PathManager.isfile(config_file):
        raise FileNotFoundError(f"there is no config file {config_file!r}")
    # The bases too are those beside the file itself, not beside a link to it.
    trusted = os.path.realpath(config_file).startswith(os.path.realpath(_DETECTRON2S) + os.sep)
    if trusted:
        config_file = os.path.realpath(config_file)
    else:
        _check_files(config_file)
    cfg = get_cfg()
    add_yolact_config(cfg)
    cfg.merge_from_file(config_file, allow_unsafe=trusted)
    cfg.merge_from_list(list(opts))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("No GPU found: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def _check_files(config_file: str) -> None:
    """Read a config file and its bases, and see that they hold nothing but values."""
    try:
        _CheckedFiles.load_yaml_with_base(config_file, allow_unsafe=False)
    except RecursionError:
        raise ValueError(f"{config_file} is nested too deeply, or its own _BASE_") from None
    except (AttributeError, UnicodeDecodeError) as error:  # of a _BASE_ that is no text
        raise ValueError(f"{config_file} is no config: {error}") from error


class _CheckedFiles(CN):
    """Reads config files, and their bases, if they are of a size that configs have."""

    @classmethod
    def _open_cfg(cls, filename: str) -> TextIO:
        with PathManager.open(filename, "r") as file:
            text = file.read(_MAX_CONFIG_LENGTH + 1)
        if len(text) > _MAX_CONFIG_LENGTH:
            raise ValueError(f"{filename} is no config: it is longer than {_MAX_CONFIG_LENGTH}")
        named = io.StringIO(text)
        named.name = filename  # for PyYAML's messages
        root = yaml.compose(named, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"{filename} is no config: it has no keys")
        if _num_values(root, {}) > _MAX_CONFIG_VALUES:
            raise ValueError(
                f"{filename} has more than {_MAX_CONFIG_VALUES} values, as its aliases repeat them"
            )
        named.seek(0)
        return named


def _num_values(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """The number of values of a YAML node, with each alias replaced by what it stands for."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node not in known:
        known[node] = math.inf  # if it contains itself
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in children for child in pair]
        known[node] = 1 + sum(_num_values(child, known) for child in children)
    return known[node]
