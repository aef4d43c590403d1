"""Small models: for the benchmark's tests, in the words of its command line, and built."""

import torch
from detectron2.modeling import build_model
from plain import CONFIGS

from yolact_d2 import load_config

_SMALL = "MODEL.RESNETS.DEPTH=18,MODEL.RESNETS.RES2_OUT_CHANNELS=64,MODEL.FPN.OUT_CHANNELS=32"
_SIZE = "INPUT.MIN_SIZE_TEST=96,INPUT.MIN_SIZE_TRAIN=(96,)"

YOLACT = f"{CONFIGS / 'yolact_shapes.yaml'}:INPUT.IMAGE_SIZE=96"
MASK_RCNN = (
    f"mask_rcnn=COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml:{_SMALL},{_SIZE},"
    "MODEL.RPN.POST_NMS_TOPK_TEST=40"
)
CASCADE = (
    f"cascade=Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml:{_SMALL},{_SIZE},"
    "MODEL.RPN.POST_NMS_TOPK_TEST=40"
)
FASTER_RCNN = (
    f"faster_rcnn=COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml:{_SMALL},{_SIZE},"
    "MODEL.RPN.POST_NMS_TOPK_TEST=40"
)
RETINANET = f"retinanet=COCO-Detection/retinanet_R_50_FPN_1x.yaml:{_SMALL},{_SIZE}"


def tiny_yolact(config="yolact_shapes", size=64, **opts):
    """An untrained YOLACT with few channels, varied scores and no score threshold.

    Args:
        config: name of a config file.
        size: INPUT.IMAGE_SIZE.
        opts: config keys with "__" in place of dots, and their values.
    """
    opts = {
        "INPUT.IMAGE_SIZE": size,
        "MODEL.DEVICE": "cpu",
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.YOLACT.HEAD_CONV_DIM": 32,
        "MODEL.YOLACT.MASK_IOU.CONV_DIMS": [4, 8],
        "MODEL.YOLACT.ANCHOR_SCORE_THRESH_TEST": 0.0,
        "MODEL.YOLACT.MAX_MASK_POSITIVES": 0,
        **{key.replace("__", "."): value for key, value in opts.items()},
    }
    cfg = load_config(str(CONFIGS / f"{config}.yaml"), [x for item in opts.items() for x in item])
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        model.head.cls_score.weight *= 20
    return model


def with_double_network(model):
    """Convert the network to float64, so that its float32 outputs do not depend on rounding, which
    differs between batch sizes and could change ranks and thresholded values."""
    model.double()
    if model.mask_iou_head is not None:
        model.mask_iou_head.float()  # its inputs are float32 masks
    return model
