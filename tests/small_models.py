"""Small models: built, in the words of the benchmark's command line, and inputs for them."""

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from plain import CONFIGS

from yolact_d2 import load_config

_SMALL_RESNET = (
    "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 16 "
    "INPUT.MIN_SIZE_TEST 64 INPUT.MIN_SIZE_TRAIN (64,)"
)
_SMALL_HEADS = (
    "MODEL.RPN.POST_NMS_TOPK_TEST 40 MODEL.RPN.POST_NMS_TOPK_TRAIN 40 "
    "MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 8 "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16"
)
# LABEL CONFIG [KEY VALUE ...], as tools/benchmark takes them; each returns 7 detections.
BENCHMARK_MODELS = {
    words.split()[0]: [*words.split(), "TEST.DETECTIONS_PER_IMAGE", "7"]
    for words in (
        "yolact yolact_shapes INPUT.IMAGE_SIZE 64 MODEL.FPN.OUT_CHANNELS 16",
        "mask_rcnn COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml "
        f"{_SMALL_RESNET} {_SMALL_HEADS}",
        f"cascade Misc/cascade_mask_rcnn_R_50_FPN_1x {_SMALL_RESNET} {_SMALL_HEADS}",
        f"faster_rcnn COCO-Detection/faster_rcnn_R_50_FPN_1x {_SMALL_RESNET} {_SMALL_HEADS}",
        "embedmask embedmask_shapes INPUT.MIN_SIZE_TEST 64 INPUT.MIN_SIZE_TRAIN (64,)",
        f"retinanet COCO-Detection/retinanet_R_50_FPN_1x {_SMALL_RESNET}",
    )
}


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


def tiny_embedmask(config="embedmask_shapes", **opts):
    """An untrained EmbedMask with few channels, varied scores and no score threshold.

    Args:
        config: name of a config file.
        opts: see :func:`tiny_yolact`.
    """
    opts = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.EMBEDMASK.CLASS_SCORE_THRESH_TEST": 0.0,
        **{key.replace("__", "."): value for key, value in opts.items()},
    }
    cfg = load_config(str(CONFIGS / f"{config}.yaml"), [x for item in opts.items() for x in item])
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name in ("cls_score", "bbox_pred", "ctrness"):
            getattr(model.head, name).weight *= 20
        model.head.bbox_pred.bias += 3
    return model


def random_image(height, width):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 255


def training_input(boxes, height=64, width=96, crowd=None):
    """A training input of EmbedMask: noise, and objects that fill their boxes (XYXY)."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    gt = Instances((height, width), gt_masks=BitMasks(masks))
    gt.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    gt.gt_classes = torch.arange(len(boxes)) % 4
    if crowd is not None:
        gt.gt_iscrowd = torch.tensor(crowd)
    return {"image": random_image(height, width), "instances": gt}
